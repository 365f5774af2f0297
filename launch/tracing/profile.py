"""One window of a run as a Chrome trace: when it begins, what the driver does in it, the result."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path

from launch.tracing.spans import PROFILE_FOLDER, WINDOW_FILE, SpanFile, chrome_trace
from launch.tracing.time_book import DRIVER

PROFILE_FILE = "profile.json"
GRACE_S = 3.0  # after the window, for processes to write what they have
LONGEST_GRACE_S = 300.0  # for calls that the window's end found under way: spans come with answers

_log = logging.getLogger(__name__)


class Profile:
    """Owned by the driver, used from its main thread; what can't be written costs the profile."""

    def __init__(self, run_dir: Path, seconds: float) -> None:
        self._path = run_dir / PROFILE_FILE
        self.folder = run_dir / PROFILE_FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier process of this run
        self._seconds = seconds
        self._spans = SpanFile(self.folder, DRIVER)
        self._ends_at: float | None = None  # seconds since 1970
        self._is_over = False

    def begin(self) -> None:
        """The window opens now; later calls change nothing."""
        if self._ends_at is not None:
            return
        now = time.time()
        self._ends_at = now + self._seconds
        window = json.dumps({"begin": now, "end": self._ends_at})
        try:
            self.folder.mkdir(exist_ok=True)
            _replace(self.folder / WINDOW_FILE, window)
        except OSError as error:
            self._give_up(error)

    def driver(self, name: str, began: float, ended: float) -> None:
        """What the driver did, by time.perf_counter."""
        self._spans.add(name, began, ended)

    @property
    def has_begun(self) -> bool:
        return self._ends_at is not None

    def finish(self, oldest_call_s: float, *, at_once: bool = False) -> Path | None:
        """The trace's file, once, when the window is over; at the run's end what there is.

        oldest_call_s: age of the oldest call that is under way, 0 for none
        """
        if self._is_over or self._ends_at is None:
            return None
        if not at_once and self._is_awaited(time.time(), oldest_call_s):
            return None
        self._is_over = True
        self._spans.flush()
        try:
            _replace(self._path, json.dumps(chrome_trace(self.folder)))
        except OSError as error:
            self._give_up(error)
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        return self._path

    def _is_awaited(self, now: float, oldest_call_s: float) -> bool:
        """Whether something of the window may still be written."""
        assert self._ends_at is not None
        has_old_calls = now - oldest_call_s < self._ends_at
        return now < self._ends_at + (LONGEST_GRACE_S if has_old_calls else GRACE_S)

    def _give_up(self, error: OSError) -> None:
        self._is_over = True
        _log.warning(
            "[monitor] cannot write a profile to %s (%s); the run goes on", self._path, error
        )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    os.replace(temporary, path)
