"""How old the weights are that stored and sampled steps were played with, and who is too old.

Lag is counted in weight versions, i.e. learner updates, behind the newest version that any segment
was played with. Owned by one Replay.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_RECENT = 4_096  # sampled positions that the percentiles look at
N_BUCKETS = 16  # up to a lag of 1, 2, 4, ... 2^14, and beyond


class Aged(NamedTuple):
    """A segment by the oldest version that played it."""

    version: int
    row: int  # where it begins
    generation: int  # of that row
    n_trainable: int


class Staleness:
    """Versions of live segments, oldest first, and the lags of what was sampled.

    max_lag: versions that a position may lag behind and still be sampled; 0 = any number
    """

    def __init__(self, max_lag: int) -> None:
        self.newest = -1
        self._max_lag = max_lag
        self._by_age: list[Aged] = []  # a heap; evicted segments stay until their turn comes
        self._recent: deque[int] = deque(maxlen=N_RECENT)
        self._buckets = np.zeros(N_BUCKETS, dtype=np.int64)

    def is_too_old(self, version: int) -> bool:
        return self._max_lag > 0 and self.newest - version > self._max_lag

    def insert(self, segment: Aged, newest: int) -> None:
        """A segment came in, played with its version to `newest`."""
        self.newest = max(self.newest, newest)
        if self._max_lag:
            heapq.heappush(self._by_age, segment)

    def oldest_too_old(self) -> Aged | None:
        """The oldest segment that nobody forgot, if it is too old; it may have been evicted."""
        if self._by_age and self.is_too_old(self._by_age[0].version):
            return self._by_age[0]
        return None

    def forget_oldest(self) -> None:
        heapq.heappop(self._by_age)

    def count(self, versions: NDArray[np.int64]) -> None:
        """Note the versions of sampled positions."""
        lags = np.maximum(self.newest - versions, 0)
        self._recent.extend(lags.tolist())
        bucket = np.ceil(np.log2(np.maximum(lags, 1))).astype(np.int64)
        self._buckets += np.bincount(np.minimum(bucket, N_BUCKETS - 1), minlength=N_BUCKETS)

    def stats(self) -> dict[str, float]:
        """Percentiles over recent samples, and how many since the last call fell into each bucket.

        `replay_lag_upto_<n>` counts lags in (n / 2, n]; the first one those of 0 and 1 too.
        """
        recent = np.array(self._recent if self._recent else [0])
        p50, p90, p99 = np.percentile(recent, (50, 90, 99))
        stats = {
            "replay_lag_p50": float(p50),
            "replay_lag_p90": float(p90),
            "replay_lag_p99": float(p99),
            "replay_lag_max": float(recent.max()),
        }
        for power, count in enumerate(self._buckets[:-1].tolist()):
            stats[f"replay_lag_upto_{1 << power}"] = float(count)
        stats["replay_lag_beyond"] = float(self._buckets[-1])
        self._buckets[:] = 0
        return stats
