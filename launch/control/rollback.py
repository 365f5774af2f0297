"""What follows when the learner meets numbers that are not finite: it goes back, or the run ends.

The learner skips such an update by itself and says so; a few are bad luck. Many in a row mean that
its weights are spoilt, and only an earlier state helps.
"""

from __future__ import annotations

import time
from math import inf

from launch.config import Config
from launch.control.call_book import CallBook, RunFailed
from launch.control.checkpoint import CheckpointStore
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.runtime import Call
from learner.bad_numbers import BAD_BATCHES_FOLDER, BadStep
from learner.learner import TrainReport

PERIODIC = "periodic"


class RollBack:
    """Owned by the controller, called from its one thread."""

    def __init__(
        self,
        config: Config,
        calls: CallBook,
        fleet: Fleet,
        checkpoints: CheckpointStore,
        progress: Progress,
        reporter: Reporter,
    ) -> None:
        self._config = config
        self._calls = calls
        self._fleet = fleet
        self._checkpoints = checkpoints
        self._progress = progress
        self._reporter = reporter
        self._last: BadStep | None = None
        self._n_bad_in_a_row = 0
        self._last_update = 0  # the learner's count of updates
        self._furthest = -1  # the most that it was when the learner had to go back
        self._n_fruitless = 0  # roll-backs since a checkpoint was written further than that
        self._went_back_at = -inf
        self._has_given_up = False

    def trained(self, call: Call, report: TrainReport) -> None:
        """Counts bad updates; goes back after too many. Raises RunFailed."""
        for step in report.bad_steps:
            self._last = step
            self._reporter.event(
                "update_skipped",
                update=step.update,
                not_finite=list(step.not_finite),
                file=step.file,
            )
        if call.issued_at < self._went_back_at:
            return  # it was under way when the learner went back, and says nothing of it since
        self._n_bad_in_a_row = report.n_bad_in_a_row
        self._last_update = report.last_update
        if report.n_bad_in_a_row >= self._config.control.bad_updates_before_rollback:
            self._go_back(f"{report.n_bad_in_a_row} updates in a row were not finite")

    def may_save(self, reason: str) -> bool:
        """Whether a checkpoint may be written now; a learner that is spoilt goes back before it.

        A periodic one waits while it is open whether the learner is. Raises RunFailed.
        """
        if self._has_given_up:
            raise RunFailed("nothing is saved of a learner whose numbers are not finite")
        if not self._calls.ask(self._fleet.learner, "is_finite"):
            self._go_back("the learner's state was not finite")
        if not self._n_bad_in_a_row and self._last_update > self._furthest:
            self._n_fruitless = 0
        return not (self._n_bad_in_a_row and reason == PERIODIC)

    def _go_back(self, cause: str) -> None:
        source = self._checkpoints.latest()
        if source is None or self._n_fruitless >= self._config.control.max_rollbacks:
            self._has_given_up = True
            raise RunFailed(
                self._farewell(cause, has_checkpoint=source is not None), is_state_sound=False
            )
        self._n_fruitless += 1
        self._furthest = max(self._furthest, self._last_update)
        version = self._calls.ask(
            self._fleet.learner, "roll_back", source / "learner", self._progress.weight_version
        )
        self._went_back_at = time.monotonic()
        self._n_bad_in_a_row = self._last_update = 0
        self._progress.rollbacks += 1
        self._reporter.event("rolled_back", cause=cause, source=str(source), weight_version=version)

    def _farewell(self, cause: str, *, has_checkpoint: bool) -> str:
        config = self._config
        tried = f"{self._n_fruitless} roll-backs to the last checkpoint led no further"
        if not has_checkpoint:
            tried = "there is no checkpoint yet to roll back to"
        found = ""
        if self._last is not None:
            kinds = ", ".join(self._last.not_finite)
            found = f"; the last, update {self._last.update}: {kinds}"
        return (
            f"{cause}{found}; {tried}. The batches are in {BAD_BATCHES_FOLDER}/ of the run "
            "directory (numpy.load). Lower learner.learning_rate (now "
            f"{config.learner.learning_rate:g}) or learner.grad_clip (now "
            f"{config.learner.grad_clip:g}) and give the same command, or go on from an older "
            "checkpoint with --resume PATH"
        )
