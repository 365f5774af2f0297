"""What one collect call tells the controller; small enough to travel inline with the answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from actors.live_view import EnvView
from cache.pool import PoolStats


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One finished episode."""

    actor: int
    env_id: int
    level: str
    total_reward: float
    length: int  # env steps
    end_reason: str  # flag, death, stall, terminated or truncated
    max_x: int | None  # Mario's progress in pixels, None elsewhere


@dataclass(slots=True)
class CollectReport:
    """Metadata of one collect call; small enough to travel inline."""

    env_steps: int = 0
    payload_bytes: int = 0  # of the segments that travel beside it
    simulations: int = 0
    weight_version: int = -1
    episodes: list[EpisodeRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage
    search: dict[str, float] = field(default_factory=dict)  # summed search statistics
    cache: dict[str, PoolStats] = field(default_factory=dict)  # of this call, by pool
    prior: dict[str, float] = field(default_factory=dict)  # prior client counters since start
    views: list[EnvView] = field(default_factory=list)  # where somebody looks

    def add_seconds(self, stage: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


def end_reason(info: dict[str, object], terminated: bool) -> str:
    """Why an episode ended, in one word, from what the environment says."""
    for reason in ("flag", "death", "stall", "won", "lost", "hung"):
        if info.get(reason):
            return reason
    return "terminated" if terminated else "truncated"
