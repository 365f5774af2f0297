"""What one collect call tells the controller; small enough to travel inline with the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from actors.live_view import EnvView
from actors.search import SearchOutput
from cache.pool import PoolStats
from replay_service.stage_times import add_seconds

Rows = NDArray[np.floating]
SMALLEST_PRIOR = 1e-6  # what an option that the LLM rules out is taken for; bounds the divergence


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One finished episode."""

    actor: int
    env_id: int
    level: str
    total_reward: float
    length: int  # env steps
    end_reason: str  # see `end_reason`
    max_x: int | None  # Mario's progress in pixels, None elsewhere
    is_clear: bool | None = None  # see `is_clear`


@dataclass(slots=True)
class CollectReport:
    """Metadata of one collect call; small enough to travel inline."""

    env_steps: int = 0
    payload_bytes: int = 0  # of the segments that travel beside it
    simulations: int = 0
    weight_version: int = -1
    episodes: list[EpisodeRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage
    search: dict[str, float] = field(default_factory=dict)  # sums; see add_search, add_prior
    depth_max: int = 0  # edges on the longest path of all searches
    cache: dict[str, PoolStats] = field(default_factory=dict)  # of this call, by pool
    prior: dict[str, float] = field(default_factory=dict)  # prior client counters since start
    views: list[EnvView] = field(default_factory=list)  # where somebody looks
    made_s: tuple[float, ...] = ()  # in an actor's first: seconds to make each environment

    def add_search(self, output: SearchOutput) -> None:
        """Statistics of one search over B roots."""
        self.simulations += output.stats.simulations
        sums = {stat.name: getattr(output.stats, stat.name) for stat in fields(output.stats)}
        sums |= {"n_roots": len(output.depth_max), "depth": float(output.depth_max.sum())}
        self._add(sums)
        self.depth_max = max(self.depth_max, int(output.depth_max.max(initial=0)))

    def add_prior(self, policy: Rows, prior: Rows, available: NDArray[np.bool_]) -> None:
        """How far searches ended from the LLM's prior, [B, A] each, where it was there [B]."""
        found, asked = policy[available], np.maximum(prior[available], SMALLEST_PRIOR)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(found > 0.0, found * np.log(found / asked), 0.0)
        self._add({"prior_kl": float(terms.sum()), "n_priors": float(len(found))})

    def _add(self, sums: Mapping[str, float]) -> None:
        for name, value in sums.items():
            self.search[name] = self.search.get(name, 0.0) + value

    def add_seconds(self, stage: str, since: float) -> float:
        return add_seconds(self.seconds, stage, since)


def end_reason(info: dict[str, object], terminated: bool) -> str:
    """Why an episode ended, in one word, from what the environment says."""
    if info.get("death") and info.get("time") == 0:
        return "timeout"  # the game's own clock ran out, which costs a life
    for reason in ("flag", "death", "stall", "won", "lost", "hung"):
        if info.get(reason):
            return reason
    return "terminated" if terminated else "truncated"


def is_clear(info: dict[str, object], terminated: bool) -> bool | None:
    """Whether an episode has been won by now; None in a game that says nothing of winning."""
    if "won" in info:
        return bool(info["won"])
    if "flag" in info:  # a warp leads out of a stage without its flag
        return terminated and not info.get("death")
    return None
