"""When a run is saved, and what follows if it can't be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launch.control.call_book import CallBook, RunFailed
from launch.control.config import ControlConfig
from launch.control.cut import save_cut
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.rate_limiter import RateLimiter
from launch.control.reporter import Reporter
from launch.control.rollback import ASKED, PERIODIC
from launch.control.run_directory import RunDirectory
from launch.control.runtime import CallFailed
from launch.control.shards import ReplayShards
from launch.control.uploads import AFTERWARDS, Uploads

SECONDS_PER_MINUTE = 60.0
LAST_REASONS = ("finished", "stopped", "rescued")
NOT_SOUND = (
    "the last updates of a learner met numbers that are not finite, so that it is open whether its "
    "state is worth keeping; the next checkpoint is made when it is due, or asked for"
)
LAST_UPLOAD_TRIES = 2  # no later checkpoint makes up for one that fails


class Checkpointer:
    """Owned by the controller; saves when nothing is moving."""

    def __init__(
        self,
        config: ControlConfig,
        calls: CallBook,
        run: RunDirectory,
        fleet: Fleet,
        progress: Progress,
        limiter: RateLimiter,
        shards: ReplayShards,
        reporter: Reporter,
        may_save: Sequence[Callable[[str], bool]],
        on_failure: Callable[[CallFailed], None],
    ) -> None:
        """may_save: of each learner, whether its state is sound, by reason

        on_failure: a shard of replay died
        """
        self._config = config
        self._calls = calls
        self._store = run.checkpoints
        self._fleet = fleet
        self._progress = progress
        self._limiter = limiter
        self._shards = shards
        self._reporter = reporter
        self._may_save = may_save
        self._on_failure = on_failure
        self.is_asked = False  # somebody wants one now
        self._uploads: Uploads | None = None
        if run.remote is not None:
            self._uploads = Uploads(run.remote, config.keep_checkpoints)
            run.checkpoints.held = self._uploads.held
        self.begin()

    def begin(self) -> None:
        """The first one is due a whole period from now."""
        self._due_step = self._progress.env_steps + self._config.checkpoint_every_env_steps
        self._due_at = self._calls.now() + self._config.checkpoint_every_min * SECONDS_PER_MINUTE

    @property
    def is_due(self) -> bool:
        is_time = self._progress.env_steps >= self._due_step or self._calls.now() >= self._due_at
        return is_time or self.is_asked

    def save(
        self, reason: str, *, since: float | None = None, idle_since: float | None = None
    ) -> None:
        """A checkpoint of the run as it is; one that a learner's state forbids is left out with an
        event. Raises RunFailed; OSError if it can't be written.

        since, idle_since: on the runtime's clock, when the last work was begun before it, and when
        the learner had done what it had; None is now
        """
        began = self._calls.now()
        since, idle_since = since or began, idle_since or began
        if not all([may_save(reason) for may_save in self._may_save]):
            self._left_out(NOT_SOUND)
            return
        path, seconds = save_cut(
            self._calls,
            self._store,
            self._fleet,
            self._progress,
            self._limiter,
            self._shards,
            reason=reason,
            on_failure=self._on_failure,
        )
        now = self._calls.now()
        self._reporter.event(
            "checkpoint",
            path=str(path),
            reason=reason,
            seconds=seconds,
            stall_s=now - idle_since,
            held_s=now - since,
        )
        if self._uploads is not None:
            self._uploads.submit(path, self._store.best())
            if reason in LAST_REASONS:
                self._finish_upload(self._uploads, path)

    def tell_of_uploads(self) -> bool:
        """Writes down what became of uploads since the last call; whether the newest succeeded."""
        is_uploaded = False
        for outcome in self._uploads.take_outcomes() if self._uploads is not None else ():
            self._reporter.event(outcome.kind, **outcome.fields)
            if outcome.kind not in AFTERWARDS:
                is_uploaded = outcome.is_uploaded
        return is_uploaded

    def _finish_upload(self, uploads: Uploads, path: Path) -> None:
        """Waits for the last checkpoint's upload, as long as a stop may take."""
        until = self._calls.now() + min(self._calls.seconds_left, self._config.stop_budget_s)
        for attempt in range(LAST_UPLOAD_TRIES):
            if attempt:
                uploads.submit(path, self._store.best())
            if not uploads.wait(until - self._calls.now()):
                self._reporter.event(
                    "checkpoint_upload_failed",
                    checkpoint=path.name,
                    cause=f"not done within control.stop_budget_s={self._config.stop_budget_s:g}; "
                    f"the checkpoint is in {path}",
                )
                return
            if self.tell_of_uploads():
                return

    def save_or_go_on(self, *, since: float, idle_since: float) -> None:
        """One of the periodic ones, or asked for: a disk that is full now may have room later.

        Times are those of `save`. A child that dies of being asked is seen to as at any other time.
        """
        while self._due_step <= self._progress.env_steps:
            self._due_step += self._config.checkpoint_every_env_steps
        self._due_at = self._calls.now() + self._config.checkpoint_every_min * SECONDS_PER_MINUTE
        reason = ASKED if self.is_asked else PERIODIC
        self.is_asked = False
        try:
            self.save(reason, since=since, idle_since=idle_since)
        except OSError as error:
            self._left_out(str(error))
        except RunFailed as error:
            failure = error.__cause__
            if not isinstance(failure, CallFailed) or failure.raised:
                raise
            self._on_failure(failure)
            self._left_out(str(error))

    def _left_out(self, cause: str) -> None:
        newest = self._store.newest()
        self._reporter.event(
            "checkpoint_failed",
            cause=cause[-400:],
            newest="none" if newest is None else str(newest),
        )
