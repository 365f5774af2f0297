"""What a prior client counts, and the reasons for which a search goes on without the prior."""

from __future__ import annotations

from collections import deque
from enum import Enum

import numpy as np

from cache.prior_cache import PriorCacheStats

RECENT = 1000  # latencies kept for the percentiles


class Fallback(Enum):
    """Why a row has no prior; the value is part of its metric's name."""

    DEADLINE = "deadline"  # no answer in time
    DEAD = "dead"  # the engine is starting, failed or gone
    INVALID = "invalid"  # NaN, too short, or not a log-probability
    OVERLOAD = "overload"  # too many questions open
    RESTING = "resting"  # not asked, because the engine has not answered lately
    UNASKABLE = "unaskable"  # texts too long or not Unicode, options without labels
    NO_OPTIONS = "no_options"  # no option has a text
    NO_TEXT = "no_text"  # the environment has no text for this state


class PriorCounters:
    """Plain counters of one client."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.n_sent = 0
        self.n_shared = 0
        self.n_reused = 0
        self.n_late = 0
        self.wait_s = 0.0
        self._fallbacks = dict.fromkeys(Fallback, 0)
        self._latencies_s: deque[float] = deque(maxlen=RECENT)

    def fall_back(self, reason: Fallback) -> None:
        self._fallbacks[reason] += 1

    def answered(self, latency_s: float, *, late: bool) -> None:
        self._latencies_s.append(latency_s)
        self.n_late += late

    def as_dict(self, cache: PriorCacheStats) -> dict[str, float]:
        """`*_total` since the start; latencies in milliseconds over the last answers."""
        latencies_ms = 1e3 * np.array(self._latencies_s or [0.0])
        asked = self.n_rows - self._fallbacks[Fallback.NO_TEXT]
        fallen = sum(self._fallbacks.values()) - self._fallbacks[Fallback.NO_TEXT]
        return {
            "prior_rows_total": float(self.n_rows),
            "prior_sent_total": float(self.n_sent),
            "prior_shared_total": float(self.n_shared),
            "prior_reused_total": float(self.n_reused),
            "prior_late_total": float(self.n_late),
            "prior_cache_hits_total": float(cache.hits),
            "prior_cache_misses_total": float(cache.misses),
            "prior_cache_evictions_total": float(cache.evictions),
            "prior_cache_hit_rate": cache.hit_rate,
            "prior_cache_size": float(cache.size),
            "prior_fallback_total": float(fallen),
            "prior_fallback_rate": fallen / asked if asked else 0.0,
            **{f"prior_fallback_{r.value}_total": float(n) for r, n in self._fallbacks.items()},
            "prior_wait_s_total": self.wait_s,
            "prior_latency_ms_mean": float(latencies_ms.mean()),
            "prior_latency_ms_p50": float(np.percentile(latencies_ms, 50)),
            "prior_latency_ms_p99": float(np.percentile(latencies_ms, 99)),
        }
