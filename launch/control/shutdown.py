"""Signals: the first asks the run to end in a checkpoint, the second leaves at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 75  # stopped before the end; the same command goes on (EX_TEMPFAIL)
EXIT_INTERRUPTED_TWICE = 130


class StopRequest:
    """Set by SIGINT or SIGTERM; read by the controller between two turns."""

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""

    def install(self) -> None:
        """Call after Ray has started: Ray installs handlers of its own."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # The checkpoint being written has a temporary name, so the previous one stays intact.
            os._exit(EXIT_INTERRUPTED_TWICE)
        self.requested = True
        self.reason = signal.Signals(number).name
        os.write(2, b"[train] stopping: writing a checkpoint; once more to leave at once\n")
