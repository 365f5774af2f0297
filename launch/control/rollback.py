"""What follows when a learner meets numbers that are not finite: it goes back, or the run ends.

A learner skips such an update by itself and says so; a few are bad luck. Many in a row mean that
its weights are spoilt, and only an earlier state helps.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Protocol

from launch.config import Config
from launch.control.call_book import CallBook, RunFailed
from launch.control.checkpoint import CheckpointStore
from launch.control.config import ControlConfig
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.runtime import Call, Child
from learner.bad_numbers import BAD_BATCHES_FOLDER, BadStep
from learner.language.language_learner import LanguageReport
from learner.learner import TrainReport

PERIODIC = "periodic"
ASKED = "asked for"  # by a person, and made as periodic ones are


class Patient(Protocol):
    """A learner that can go back, as its RollBack sees it."""

    part: str  # its folder in a checkpoint
    advice: str  # how to keep its numbers finite

    @property
    def child(self) -> Child | None:
        """Who it is now; None where no such learner runs."""

    def go_back(self, folder: Path) -> dict[str, object]:
        """Restores what was saved in `folder` and publishes it; what to say of it."""


class WorldModelPatient:
    """The learner of the world model."""

    part = "learner"

    def __init__(self, config: Config, calls: CallBook, fleet: Fleet, progress: Progress) -> None:
        self._calls = calls
        self._fleet = fleet
        self._progress = progress
        self.advice = (
            f"Lower learner.learning_rate (now {config.learner.learning_rate:g}) or "
            f"learner.grad_clip (now {config.learner.grad_clip:g})"
        )

    @property
    def child(self) -> Child:
        return self._fleet.learner

    def go_back(self, folder: Path) -> dict[str, object]:
        acted = self._progress.weight_version
        self._progress.rollbacks += 1
        return {"weight_version": self._calls.ask(self.child, "roll_back", folder, acted)}


class RollBack:
    """Of one learner; owned by the controller, called from its one thread."""

    def __init__(
        self,
        config: ControlConfig,
        calls: CallBook,
        checkpoints: CheckpointStore,
        reporter: Reporter,
        patient: Patient,
    ) -> None:
        self._config = config
        self._calls = calls
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._patient = patient
        self._last: BadStep | None = None
        self._n_bad_in_a_row = 0
        self._last_update = 0  # the learner's count of updates
        self._furthest = -1  # the most that it was when the learner had to go back
        self._n_fruitless = 0  # roll-backs since a checkpoint was written further than that
        self._went_back_at = -inf
        self._has_given_up = False

    def trained(self, call: Call, report: TrainReport | LanguageReport) -> None:
        """Counts bad updates; goes back after too many. Raises RunFailed."""
        for step in report.bad_steps:
            self._last = step
            self._reporter.event(
                "update_skipped",
                child=call.child.name,
                update=step.update,
                not_finite=list(step.not_finite),
                file=step.file,
            )
        if call.issued_at < self._went_back_at:
            return  # it was under way when the learner went back, and says nothing of it since
        self._n_bad_in_a_row = report.n_bad_in_a_row
        self._last_update = report.last_update
        if report.n_bad_in_a_row >= self._config.bad_updates_before_rollback:
            self._go_back(f"{report.n_bad_in_a_row} updates in a row were not finite")

    def may_save(self, reason: str) -> bool:
        """Whether a checkpoint may be written now; a learner that is spoilt goes back before it.

        A periodic one waits while it is open whether the learner is. Raises RunFailed.
        """
        if self._has_given_up:
            raise RunFailed("nothing is saved of a learner whose numbers are not finite")
        child = self._patient.child
        if child is None:
            return True
        if not self._calls.ask(child, "is_finite"):
            self._go_back("its state was not finite")
        if not self._n_bad_in_a_row and self._last_update > self._furthest:
            self._n_fruitless = 0
        return not (self._n_bad_in_a_row and reason in (PERIODIC, ASKED))

    def _go_back(self, cause: str) -> None:
        source = self._checkpoints.latest()
        folder = source and source / self._patient.part
        has_source = folder is not None and folder.is_dir()
        if not has_source or self._n_fruitless >= self._config.max_rollbacks:
            self._has_given_up = True
            raise RunFailed(self._farewell(cause, has_source=has_source), is_state_sound=False)
        self._n_fruitless += 1
        self._furthest = max(self._furthest, self._last_update)
        said = self._patient.go_back(folder)
        self._went_back_at = self._calls.now()
        self._n_bad_in_a_row = self._last_update = 0
        name = self._patient.child.name
        self._reporter.event("rolled_back", child=name, cause=cause, source=str(source), **said)

    def _farewell(self, cause: str, *, has_source: bool) -> str:
        tried = f"{self._n_fruitless} roll-backs to the last checkpoint led no further"
        if not has_source:
            tried = "there is no checkpoint yet to roll back to"
        found = ""
        if self._last is not None:
            kinds = ", ".join(self._last.not_finite)
            found = f"; the last, update {self._last.update}: {kinds}"
        return (
            f"{self._patient.child.name}: {cause}{found}; {tried}. The batches are in "
            f"{BAD_BATCHES_FOLDER}/ of the run directory (numpy.load). {self._patient.advice} and "
            "give the same command, or go on from an older checkpoint with --resume PATH"
        )
