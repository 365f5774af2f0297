"""Requests to stop: by a signal or by the clock. A second signal leaves at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from launch.control.descendants import descendants, end_all

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 75  # stopped before the end; the same command goes on (EX_TEMPFAIL)
EXIT_INTERRUPTED = 130  # at once, by a second signal, or by one before the run had begun


class StopRequest:
    """Read by the controller between two turns; asks for an end in a checkpoint."""

    def __init__(self, max_hours: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        """max_hours: from now; 0 sets no limit."""
        self.reason = ""
        self._clock = clock
        self._max_hours = max_hours
        self._ends_at = clock() + max_hours * 3600.0 if max_hours else float("inf")
        self._n_signals = 0

    @property
    def requested(self) -> bool:
        if not self.reason and self._clock() >= self._ends_at:
            self._request(f"control.max_hours={self._max_hours:g}")
        return bool(self.reason)

    def install(self) -> None:
        """Call again after Ray has started: Ray installs handlers of its own."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._n_signals += 1
        if self._n_signals > 1:
            _leave_at_once()
        if not self.reason:
            self._request(signal.Signals(number).name)

    def _request(self, reason: str) -> None:
        self.reason = reason
        text = f"[train] {reason}: ending in a checkpoint; a second signal leaves at once\n"
        os.write(2, text.encode())


def _leave_at_once() -> NoReturn:
    """A checkpoint being written has a temporary name, so the previous one stays intact.

    Every process below this one is killed: Ray's agents would look for their dead head node for
    a minute before they end.
    """
    end_all(descendants(), grace_s=0.0)
    os._exit(EXIT_INTERRUPTED)
