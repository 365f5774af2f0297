"""What a shard reports about itself: metrics by name, and a line for the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from replay_service.replay import Replay

# Live positions that the priority percentiles look at.
MAX_PERCENTILE_POSITIONS = 16_384


def replay_stats(replay: Replay) -> dict[str, float]:
    """Metrics by name; percentiles come from at most 16,384 evenly spaced positions."""
    counters, ring, sampler = replay.counters, replay.ring, replay.sampler
    priority = sampler.live_priorities(ring.high_row, MAX_PERCENTILE_POSITIONS)
    if len(priority) == 0:
        priority = np.zeros(1, dtype=np.float32)
    p50, p90, p99 = np.percentile(priority, (50, 90, 99))
    stage_ms = replay.timer.read_ms()
    return {
        "replay_fill_rate": ring.n_rows_used / ring.n_rows,
        "replay_positions": float(replay.n_positions),
        "replay_push_total": float(counters.n_pushed),
        "replay_last_unique_ratio": counters.last_unique_ratio,
        "replay_avg_unique_ratio": counters.mean_unique_ratio,
        "replay_priority_mean": float(priority.mean()),
        "replay_priority_p50": float(p50),
        "replay_priority_p90": float(p90),
        "replay_priority_p99": float(p99),
        "replay_beta": replay.config.beta(counters.n_samples),
        "replay_sample_ms": sum(stage_ms.values()),
        **{f"replay_{name}_ms": stage_ms.get(name, 0.0) for name in ("draw", "gather", "targets")},
        "replay_sample_total": float(counters.n_samples),
        "replay_stale_total": float(counters.n_stale),
        "replay_duplicate_total": float(counters.n_duplicates),
        "replay_rejected_total": float(counters.n_rejected),
        "replay_invalid_priority_total": float(sampler.n_invalid),
        "replay_bytes": float(ring.n_rows_used * replay.config.bytes_per_row(replay.spec)),
        "replay_too_old_dropped_total": float(counters.n_dropped_too_old),
        "replay_too_old_masked_total": float(counters.n_masked_too_old),
        "replay_patch_applied_total": float(counters.n_patched),
        "replay_patch_stale_total": float(counters.n_patch_stale),
        "replay_patch_invalid_total": float(counters.n_patch_invalid),
        **replay.tally.stats(),
    }


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
