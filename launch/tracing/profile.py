"""One window of a run as a Chrome trace: when it begins, what the driver does in it, the result."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from launch.tracing.spans import PROFILE_FOLDER, WINDOW_FILE, SpanFile, chrome_trace
from launch.tracing.time_book import DRIVER

PROFILE_FILE = "profile.json"
GRACE_S = 3.0  # after the window, for calls that end late to write what they have


class Profile:
    """Owned by the driver, used from its main thread."""

    def __init__(self, run_dir: Path, seconds: float) -> None:
        self._path = run_dir / PROFILE_FILE
        self.folder = run_dir / PROFILE_FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier process of this run
        self.folder.mkdir()
        self._seconds = seconds
        self._spans = SpanFile(self.folder, DRIVER)
        self._ends_at: float | None = None  # seconds since 1970
        self._is_written = False

    def begin(self) -> None:
        """The window opens now; later calls change nothing."""
        if self._ends_at is not None:
            return
        now = time.time()
        self._ends_at = now + self._seconds
        temporary = self.folder / f".{WINDOW_FILE}"
        temporary.write_text(json.dumps({"begin": now, "end": self._ends_at}))
        os.replace(temporary, self.folder / WINDOW_FILE)

    def driver(self, name: str, began: float, ended: float) -> None:
        """What the driver did, by time.perf_counter."""
        self._spans.add(name, began, ended)

    def finish(self, *, at_once: bool = False) -> Path | None:
        """The trace's file, once, when the window is over; at the run's end what there is."""
        if self._is_written or self._ends_at is None:
            return None
        if not at_once and time.time() < self._ends_at + GRACE_S:
            return None
        self._is_written = True
        self._spans.flush()
        temporary = self._path.with_name(f".{PROFILE_FILE}")
        temporary.write_text(json.dumps(chrome_trace(self.folder)))
        os.replace(temporary, self._path)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self._path
