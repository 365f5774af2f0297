"""How old the weights are that stored segments were played with, and which segments are too old.

Lag is counted in weight versions, i.e. learner updates, behind the newest version that this shard
heard of: from segments and from whoever asks for batches. Owned by one Replay.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from replay_service.storage import SegmentId


class Aged(NamedTuple):
    """A segment by the oldest version that played it."""

    version: int
    segment_id: SegmentId


class Staleness:
    """Versions of live segments, oldest first.

    max_lag: versions that a position may lag behind and still be sampled; 0 = any number
    """

    def __init__(self, max_lag: int) -> None:
        self.newest = -1
        self._max_lag = max_lag
        self._by_age: list[Aged] = []  # a heap; evicted segments stay until their turn comes

    def is_too_old(self, version: int) -> bool:
        return self._max_lag > 0 and self.newest - version > self._max_lag

    def note(self, newest: int) -> None:
        """Weights of version `newest` exist."""
        self.newest = max(self.newest, newest)

    def insert(self, segment: Aged) -> None:
        if self._max_lag:
            heapq.heappush(self._by_age, segment)

    def oldest_too_old(self) -> Aged | None:
        """The oldest segment that nobody forgot, if it is too old; it may have been evicted."""
        if self._by_age and self.is_too_old(self._by_age[0].version):
            return self._by_age[0]
        return None

    def forget_oldest(self) -> None:
        heapq.heappop(self._by_age)
