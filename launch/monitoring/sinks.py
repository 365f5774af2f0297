"""Where a run's figures go beside its own files; none of these may end a run or hold it up."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

MOST_WAITING = 256  # records that a slow sink may be behind
CLOSE_LIMIT_S = 20.0  # for what waits at the end of a run
FIRST_RETRY_S = 60.0  # after an error; doubled with each further one
LONGEST_RETRY_S = 1800.0

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes every record; called from one thread at a time, and may raise anything."""

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """numbers: the figures of one record that are numbers; step: env steps of the run"""

    def close(self, *, has_failed: bool) -> None:
        """has_failed: the run, which ends now"""


class GuardedSink:
    """A sink that is left alone for a while after an error, and told of once an outage."""

    def __init__(
        self,
        what: str,
        open_sink: Callable[[], Sink],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """what: for people; `open_sink` is called with the first record, so that its errors are
        seen to as well
        """
        self.what = what
        self.n_lost = 0  # records that could not be written
        self._open_sink = open_sink
        self._clock = clock
        self._sink: Sink | None = None
        self._retry_s = 0.0  # 0 while all is well
        self._retry_at = float("-inf")
        self._n_lost_before = 0  # the outage

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        if self._clock() < self._retry_at:
            self.n_lost += 1
            return
        try:
            if self._sink is None:
                self._sink = self._open_sink()
            self._sink.write(numbers, step)
        # Trackers raise errors of their own, and of the libraries and services below them.
        except Exception as error:
            self._fail(error)
            self.n_lost += 1
        else:
            self._recover()

    def close(self, *, has_failed: bool) -> None:
        """In an outage too: it may be over, and a tracker should know that the run has ended."""
        if self._sink is None:
            return
        try:
            self._sink.close(has_failed=has_failed)
        except Exception as error:
            self._fail(error)

    def _recover(self) -> None:
        if self._retry_s:
            n_lost = self.n_lost - self._n_lost_before
            _log.warning("[monitor] %s is written again; %d records are lost", self.what, n_lost)
        self._retry_s, self._retry_at = 0.0, float("-inf")

    def _fail(self, error: Exception) -> None:
        is_new = not self._retry_s
        self._retry_s = min(max(FIRST_RETRY_S, 2 * self._retry_s), LONGEST_RETRY_S)
        self._retry_at = self._clock() + self._retry_s
        if not is_new:
            return
        self._n_lost_before = self.n_lost
        _log.warning(
            "[monitor] cannot write to %s (%s: %s); it is tried again once in a while",
            self.what,
            type(error).__name__,
            error,
        )


class BackgroundSink:
    """Writes to a sink in a thread of its own: it may wait for a network, or compute."""

    def __init__(self, sink: GuardedSink) -> None:
        self.what = sink.what
        self._sink = sink
        self._n_dropped = 0
        self._has_failed = False  # the run, once it has ended
        self._records: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name=f"writes {self.what}", daemon=True)
        self._thread.start()

    @property
    def n_lost(self) -> int:
        return self._n_dropped + self._sink.n_lost

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Returns at once; a record is dropped and counted if too many wait."""
        try:
            self._records.put_nowait((dict(numbers), step))
        except queue.Full:
            self._n_dropped += 1

    def close(self, *, has_failed: bool) -> None:
        """Waits, bounded, for what was written."""
        self._has_failed = has_failed
        try:
            self._records.put(None, timeout=CLOSE_LIMIT_S)
        except queue.Full:
            pass
        else:
            self._thread.join(CLOSE_LIMIT_S)
        if self._thread.is_alive():
            _log.warning("[monitor] %s is too slow: its last records are lost", self.what)

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            self._sink.write(*record)
        self._sink.close(has_failed=self._has_failed)
