"""Language-model answers by (prompt, options, adapter version); least recently used goes first.

Owned by one prior client and used from its thread only. Cost: one dictionary look-up a query.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PriorKey = tuple[str, tuple[str, ...], int]  # prompt, option texts, adapter version


@dataclass(frozen=True, slots=True)
class PriorCacheStats:
    """Counters since the cache was made; `size` is now."""

    hits: int
    misses: int
    evictions: int
    size: int

    @property
    def hit_rate(self) -> float:
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class PriorCache:
    """Bounded LRU map from a question to the log-probabilities that answered it, [K] float32."""

    def __init__(self, capacity: int) -> None:
        """Keeps at most `capacity` answers; 0 keeps none."""
        if capacity < 0:
            raise ValueError(f"capacity must be at least 0, got {capacity}; 0 keeps no answers")
        self._capacity = capacity
        self._entries: OrderedDict[PriorKey, NDArray[np.float32]] = OrderedDict()
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(
        self, prompt: str, options: tuple[str, ...], version: int
    ) -> NDArray[np.float32] | None:
        """The stored answer (read-only), now the most recently used one; None on a miss."""
        key = (prompt, options, version)
        answer = self._entries.get(key)
        if answer is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return answer

    def put(
        self, prompt: str, options: tuple[str, ...], version: int, log_probs: NDArray[np.float32]
    ) -> None:
        """Stores a copy, evicting the least recently used answer of a full cache."""
        if self._capacity == 0:
            return
        key = (prompt, options, version)
        answer = np.array(log_probs, dtype=np.float32)
        answer.flags.writeable = False
        self._entries[key] = answer
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
            self._evictions += 1

    def clear(self) -> None:
        """Forgets every answer; the counters go on."""
        self._entries.clear()

    def stats(self) -> PriorCacheStats:
        return PriorCacheStats(self._hits, self._misses, self._evictions, len(self._entries))
