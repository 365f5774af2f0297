"""Copies finished checkpoints to a remote store beside training: one at a time, newest first."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from launch.control.checkpoint import BEST
from launch.control.manifest import CheckpointError
from launch.control.remote_store import RemoteStore

MOST_READ_AGAIN_BYTES = 32 << 20  # after each upload
# Told of an upload that is done.
AFTERWARDS = ("checkpoint_contents_mended", "checkpoint_cleanup_failed")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a checkpoint, as the event to be told."""

    kind: str
    fields: dict[str, object]

    @property
    def is_uploaded(self) -> bool:
        return self.kind == "checkpoint_uploaded"


@dataclass(frozen=True, slots=True)
class _Job:
    newest: Path
    best: Path | None

    @property
    def names(self) -> set[str]:
        return {path.name for path in (self.newest, self.best) if path is not None}


class Uploads:
    """Called by the controller, which never waits for the store but at the end of a run.

    A thread does the work while there is any. It is a daemon: a store that never answers keeps no
    process alive.
    """

    # A run that starts again in this process may still have an upload of its former attempt.
    _one_at_a_time: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, store: RemoteStore, keep: int) -> None:
        """keep: as many of the newest stay in the store, beside that of the best evaluation."""
        self._store = store
        self._keep = keep
        self._changed = threading.Condition()
        self._running: _Job | None = None
        self._waiting: _Job | None = None
        self._outcomes: deque[Outcome] = deque()

    def submit(self, newest: Path, best: Path | None) -> None:
        """To be uploaded when the one under way is done; takes the place of one that waits."""
        with self._changed:
            if self._waiting is not None and self._waiting.newest != newest:
                self._tell("checkpoint_upload_skipped", checkpoint=self._waiting.newest.name)
            self._waiting = _Job(newest, best)
            if self._running is None:
                self._begin()

    def held(self) -> set[str]:
        """Checkpoints that must not be removed now."""
        with self._changed:
            jobs = [job for job in (self._running, self._waiting) if job is not None]
            return {name for job in jobs for name in job.names}

    def take_outcomes(self) -> list[Outcome]:
        """What was not told before, oldest first."""
        with self._changed:
            outcomes = list(self._outcomes)
            self._outcomes.clear()
            return outcomes

    def wait(self, seconds: float) -> bool:
        """Until nothing is left to do; false if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, seconds)

    # ------------------------------------------------------------------ the thread

    def _begin(self) -> None:
        self._running, self._waiting = self._waiting, None
        threading.Thread(target=self._work, name="checkpoint-upload", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._one_at_a_time:
                self._upload(self._running)
            with self._changed:
                self._running, self._waiting = self._waiting, None
                self._changed.notify_all()
                if self._running is None:
                    return

    def _upload(self, job: _Job) -> None:
        started, name = time.monotonic(), job.newest.name
        try:
            n_bytes = self._store.upload(job.newest)
            n_bytes += 0 if job.best is None else self._store.upload(job.best, BEST)
        except (OSError, CheckpointError) as error:
            self._tell("checkpoint_upload_failed", checkpoint=name, cause=str(error)[-400:])
            return
        seconds = time.monotonic() - started
        self._tell(
            "checkpoint_uploaded",
            checkpoint=self._store.uri_of(name),
            seconds=seconds,
            n_bytes=n_bytes,
        )
        try:
            self._store.remove_surplus(self._keep)
            if n_mended := self._store.mend(job.newest, MOST_READ_AGAIN_BYTES):
                self._tell("checkpoint_contents_mended", checkpoint=name, n_contents=n_mended)
        except (OSError, CheckpointError) as error:
            self._tell("checkpoint_cleanup_failed", cause=str(error)[-400:])

    def _tell(self, kind: str, **fields: object) -> None:
        with self._changed:
            self._outcomes.append(Outcome(kind, fields))
