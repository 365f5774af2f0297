"""How far acting and learning may run ahead of each other, from a run's settings.

The limiter's band must be as wide as what the calls in flight can still insert or sample, so the
numbers of calls in flight live here beside it.
"""

from __future__ import annotations

from launch.config import Config
from launch.control.rate_limiter import RateLimiter

COLLECTS_IN_FLIGHT = 2  # per env actor: one running, one queued, so that it never idles
TRAINS_IN_FLIGHT = 2


def train_chunk(config: Config) -> int:
    """Positions that one train call samples."""
    return config.control.updates_per_call * config.learner.batch_size


def make_limiter(config: Config) -> RateLimiter:
    """The limiter of a run; ValueError for settings with which both sides could wait for ever."""
    acting = config.acting
    return RateLimiter(
        config.limiter,
        min_positions=config.replay.min_positions,
        sample_chunk=TRAINS_IN_FLIGHT * train_chunk(config),
        insert_chunk=COLLECTS_IN_FLIGHT * acting.num_actors * acting.collect_steps,
    )
