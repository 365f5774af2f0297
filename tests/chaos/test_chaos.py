"""A few random kills of a real run; `make chaos` is the long form."""

from tests.chaos.chaos import torment
from tests.chaos.real_run import RealRun


def test_random_kills_are_survived(tmp_path, fault_seed):
    faults = torment(RealRun(tmp_path / "run"), fault_seed, seconds=30.0, n_least=3)
    assert len(faults) >= 3
