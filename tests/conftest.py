"""What tests of every folder share."""

import os
import random

import pytest
from hypothesis import HealthCheck, settings

# How fast examples are made and run says how busy the machine is, not whether the code is right.
settings.register_profile("warpzone", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("warpzone")


@pytest.fixture
def fault_seed() -> int:
    """Decides what is hit and when; printed, and WARPZONE_FAULT_SEED repeats it."""
    given = os.environ.get("WARPZONE_FAULT_SEED")
    seed = random.SystemRandom().randrange(10**6) if given is None else int(given)
    print(f"WARPZONE_FAULT_SEED={seed}")
    return seed
