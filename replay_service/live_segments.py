"""Which segments a shard holds, which of them are sampled, and which it held before.

Host metadata only. Owned by one Replay, which keeps ring and sampler in step with it.
"""

from __future__ import annotations

from replay_service.reanalysis import RefreshQueue
from replay_service.storage import SegmentId, StoredSegment

# (actor, incarnation) pairs whose evicted segments are remembered for duplicate detection.
MAX_REMEMBERED_ACTORS = 65_536


class LiveSegments:
    """Segments by id, masked ones apart.

    evicted_sequence: highest sequence evicted per (actor, incarnation), least recently grown first
    refresh_queue:    segments that are sampled, the least recently refreshed first
    """

    def __init__(self) -> None:
        self.evicted_sequence: dict[tuple[int, int], int] = {}
        self.refresh_queue = RefreshQueue()
        self._stored: dict[SegmentId, StoredSegment] = {}
        self._masked: set[SegmentId] = set()

    def is_known(self, segment_id: SegmentId) -> bool:
        """Whether it is here, or was evicted, or would have been before one that was."""
        evicted = self.evicted_sequence.get(segment_id[:2], -1)
        return segment_id in self._stored or segment_id[2] <= evicted

    def get(self, segment_id: SegmentId) -> StoredSegment | None:
        return self._stored.get(segment_id)

    def insert(self, stored: StoredSegment) -> None:
        self._stored[stored.segment_id] = stored
        self.refresh_queue.insert(stored.segment_id)

    def mask(self, stored: StoredSegment) -> None:
        """It stays, and is neither sampled nor refreshed any more."""
        self._masked.add(stored.segment_id)
        self.refresh_queue.remove(stored.segment_id)

    def evict(self, stored: StoredSegment) -> int:
        """Returns how many positions less may start a sample."""
        segment_id = stored.segment_id
        del self._stored[segment_id]
        self.refresh_queue.remove(segment_id)
        highest = self.evicted_sequence.pop(segment_id[:2], -1)
        self.evicted_sequence[segment_id[:2]] = max(highest, segment_id[2])
        if len(self.evicted_sequence) > MAX_REMEMBERED_ACTORS:
            del self.evicted_sequence[next(iter(self.evicted_sequence))]
        if segment_id in self._masked:
            self._masked.remove(segment_id)
            return 0
        return stored.n_trainable

    def least_refreshed(self, n_segments: int) -> list[StoredSegment]:
        """Counts them as refreshed from now on."""
        return [self._stored[segment_id] for segment_id in self.refresh_queue.take(n_segments)]
