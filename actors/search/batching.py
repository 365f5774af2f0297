"""Which waiting requests are searched together, and when: dynamic batching with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class BatchingStats:
    """Of the batches taken since the last reset."""

    n_taken: int  # items
    wait_s: float  # summed, from put to take
    full: int  # batches that went because they held as many roots as allowed
    complete: int  # because everybody of the batch before was in it
    overdue: int  # because the oldest item had waited long enough


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item]):
    item: Item
    client: Hashable
    n_roots: int
    since: float


class BatchQueue(Generic[Item]):
    """Items of many clients, taken in their order by one worker.

    A batch goes when it is full (`max_roots`), when all clients of the batch before are back, or
    when its oldest item has waited `wait_s`. `put` and `take` may be called from different
    threads. Bounded: clients wait for their answer before they ask again.
    """

    def __init__(
        self, max_roots: int, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_roots = max_roots
        self._wait_s = wait_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[_Waiting[Item]] = []
        self._before: set[Hashable] = set()  # clients of the last batch
        self._n_taken = 0
        self._wait_sum_s = 0.0
        self._reasons = {"full": 0, "complete": 0, "overdue": 0}

    def put(self, item: Item, client: Hashable, n_roots: int) -> None:
        with self._changed:
            self._waiting.append(_Waiting(item, client, n_roots, self._clock()))
            self._changed.notify()

    def take(self) -> list[Item]:
        """The next batch, oldest items first; waits for it. At least one item, however large."""
        with self._changed:
            while True:
                reason = self.reason
                if reason is not None:
                    return self._cut(reason)
                left = None
                if self._waiting:
                    left = self._waiting[0].since + self._wait_s - self._clock()
                self._changed.wait(left)

    @property
    def reason(self) -> str | None:
        """Why a batch may go now: full, complete or overdue; None while it had better wait."""
        if not self._waiting:
            return None
        if sum(w.n_roots for w in self._waiting) >= self._max_roots:
            return "full"
        if self._before and self._before <= {w.client for w in self._waiting}:
            return "complete"
        is_overdue = self._clock() - self._waiting[0].since >= self._wait_s
        return "overdue" if is_overdue else None

    def stats(self) -> BatchingStats:
        """What happened since the last call of this."""
        with self._changed:
            stats = BatchingStats(self._n_taken, self._wait_sum_s, **self._reasons)
            self._n_taken, self._wait_sum_s = 0, 0.0
            self._reasons = dict.fromkeys(self._reasons, 0)
        return stats

    def _cut(self, reason: str) -> list[Item]:
        n_items, n_roots = 1, self._waiting[0].n_roots
        for waiting in self._waiting[1:]:
            n_roots += waiting.n_roots
            if n_roots > self._max_roots:
                break
            n_items += 1
        batch, self._waiting = self._waiting[:n_items], self._waiting[n_items:]
        self._before = {w.client for w in batch}
        now = self._clock()
        self._n_taken += n_items
        self._wait_sum_s += sum(now - w.since for w in batch)
        self._reasons[reason] += 1
        return [w.item for w in batch]
