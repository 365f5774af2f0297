"""What a shard reports about itself: metrics by name, and a line for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from replay_service.replay import Replay

# Live positions that the priority percentiles look at.
MAX_PERCENTILE_POSITIONS = 16_384


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of the segments of one `add`; positions are the trainable ones.

    n_bytes: ring memory that they took; n_bytes_held: all that the shard holds now
    """

    n_positions: int
    n_duplicates: int
    n_rejected: int
    n_evicted_positions: int
    reasons: tuple[str, ...] = ()  # one per rejected segment
    n_bytes: int = 0
    n_bytes_held: int = 0


def replay_stats(replay: Replay) -> dict[str, float]:
    """Metrics by name; percentiles come from at most 16,384 evenly spaced positions."""
    counters, ring, sampler = replay.counters, replay.ring, replay.sampler
    priority = sampler.live_priorities(ring.high_row, MAX_PERCENTILE_POSITIONS)
    if len(priority) == 0:
        priority = np.zeros(1, dtype=np.float32)
    p50, p90, p99 = np.percentile(priority, (50, 90, 99))
    stage_ms = replay.timer.read_ms()
    return {
        "replay_fill_rate": max(
            ring.n_rows_used / ring.n_rows, ring.frames.n_used / ring.frames.n_slots
        ),
        "replay_positions": float(replay.n_positions),
        "replay_mass": sampler.total,
        "replay_push_total": float(counters.n_pushed),
        "replay_last_unique_ratio": counters.last_unique_ratio,
        "replay_avg_unique_ratio": counters.mean_unique_ratio,
        "replay_priority_mean": float(priority.mean()),
        "replay_priority_p50": float(p50),
        "replay_priority_p90": float(p90),
        "replay_priority_p99": float(p99),
        "replay_beta": replay.config.beta(counters.n_batches),
        "replay_sample_ms": sum(stage_ms.values()),
        **{f"replay_{name}_ms": stage_ms.get(name, 0.0) for name in ("draw", "gather", "targets")},
        "replay_sample_total": float(counters.n_batches),
        "replay_stale_total": float(counters.n_stale),
        "replay_duplicate_total": float(counters.n_duplicates),
        "replay_rejected_total": float(counters.n_rejected),
        "replay_invalid_priority_total": float(sampler.n_invalid),
        "replay_bytes": float(ring.n_bytes),
        "replay_too_old_dropped_total": float(counters.n_dropped_too_old),
        "replay_too_old_masked_total": float(counters.n_masked_too_old),
        "replay_patch_applied_total": float(counters.n_patched),
        "replay_patch_stale_total": float(counters.n_patch_stale),
        "replay_patch_invalid_total": float(counters.n_patch_invalid),
        **replay.tally.stats(),
    }


# How the figures of several shards become one; what is not listed is added up.
_LARGEST = {
    "replay_beta",
    "replay_sample_total",  # of the batches, which all shards make together
    "replay_lag_max",
    # Shards work at the same time: a batch is there when the slowest has answered.
    "replay_sample_ms",
    "replay_draw_ms",
    "replay_gather_ms",
    "replay_targets_ms",
}
_MEAN_OVER_POSITIONS = {f"replay_priority_{name}" for name in ("mean", "p50", "p90", "p99")}
_MEAN_OVER_MASS = {  # of what was sampled; a shard's share of that is its share of the mass
    "replay_last_unique_ratio",
    "replay_avg_unique_ratio",
    "replay_reanalysed_share",
    "replay_lag_p50",
    "replay_lag_p90",
    "replay_lag_p99",
}


def merge_stats(shards: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One set of figures from those of all shards, an empty mapping for one that has none now.

    Counts and totals are sums. Means of priorities are exact, percentiles are the shards' own,
    weighted by positions (priorities) or mass (lags). The fill rate is the mean over all shards.
    """
    held = [stats for stats in shards if stats]
    if not held:
        return {}
    positions = np.array([stats["replay_positions"] for stats in held])
    mass = np.array([stats["replay_mass"] for stats in held])
    merged = {}
    for name in held[0]:
        values = np.array([stats[name] for stats in held])
        if name in _LARGEST:
            merged[name] = float(values.max())
        elif name in _MEAN_OVER_POSITIONS:
            merged[name] = _mean(values, positions)
        elif name in _MEAN_OVER_MASS:
            merged[name] = _mean(values, mass)
        else:
            merged[name] = float(values.sum())
    merged["replay_fill_rate"] /= len(shards)
    return merged


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    if len(values) == 1 or not weights.any():
        return float(values.mean())
    return float(np.average(values, weights=weights))


def stat_line(stats: Mapping[str, float]) -> str:
    """`[replay][stat] fill=..% unique=..% avg_unique=..%`, of what `stats` returned."""
    percent = (
        f"{name}={100 * stats[metric]:.1f}%"
        for name, metric in (
            ("fill", "replay_fill_rate"),
            ("unique", "replay_last_unique_ratio"),
            ("avg_unique", "replay_avg_unique_ratio"),
        )
    )
    return f"[replay][stat] {' '.join(percent)}"
