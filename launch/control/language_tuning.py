"""When the language model is tuned, and when it goes back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.checkpoint import CheckpointStore
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.publishing import Publishing
from launch.control.reporter import Reporter
from launch.control.rollback import RollBack
from launch.control.roster import Roster
from launch.control.runtime import Call, Child
from launch.control.schedule import Schedule
from learner.language.adapter import Adapter
from learner.language.language_learner import LanguageReport


class LanguagePatient:
    """The language learner as its roll-back sees it."""

    part = "language"

    def __init__(
        self, config: Config, calls: CallBook, fleet: Fleet, publishing: Publishing
    ) -> None:
        self._calls = calls
        self._fleet = fleet
        self._publishing = publishing
        self.n_rollbacks = 0
        self.advice = (
            f"Lower language.learning_rate (now {config.language.learning_rate:g}) or "
            f"language.grad_clip (now {config.language.grad_clip:g})"
        )

    @property
    def child(self) -> Child | None:
        return self._fleet.language_learner

    def go_back(self, folder: Path) -> dict[str, object]:
        adapter: Adapter | None = self._calls.ask(self.child, "roll_back", folder)
        self.n_rollbacks += 1
        if adapter is None:
            return {"adapter_version": None}
        self._publishing.publish(adapter)
        return {"adapter_version": adapter.version}


class LanguageTuning:
    """Owned by the controller; one call to the language learner is in flight at most."""

    def __init__(
        self,
        config: Config,
        calls: CallBook,
        fleet: Fleet,
        roster: Roster,
        checkpoints: CheckpointStore,
        progress: Progress,
        reporter: Reporter,
        schedule: Schedule,
    ) -> None:
        self._llm_updates_per_call = config.schedule.llm_train_freq
        self._schedule = schedule
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._progress = progress
        self._reporter = reporter
        self.publishing = Publishing(calls, fleet, reporter)
        self._patient = LanguagePatient(config, calls, fleet, self.publishing)
        self._rollback = RollBack(config.control, calls, checkpoints, reporter, self._patient)
        self.may_save = self._rollback.may_save

    @property
    def is_busy(self) -> bool:
        """Updates are under way."""
        learner = self._fleet.language_learner
        return learner is not None and self._calls.n_in_flight("train", child=learner) > 0

    def issue(self, *, has_data: bool) -> None:
        """Tunes when it is the language model's turn; gives the turn away if it can't be taken.

        has_data: whether replay holds enough to learn from
        """
        learner = self._fleet.language_learner
        n_updates = self._schedule.llm_updates(self._llm_updates_per_call)
        if not n_updates or self._calls.n_in_flight("train", child=learner):
            return
        if not self._roster.takes_work(learner) or not self.publishing.is_any_ready:
            self._skip_turn()
        elif has_data:
            self._schedule.issued("llm", n_updates)
            self._calls.issue(learner, "train", n_updates)

    def _skip_turn(self) -> None:
        """The world model does not wait for a language model that is not there."""
        if self._schedule.phase == "llm":
            self._schedule.turn()
            self._reporter.event("schedule_phase", phase="wm", cause="no language model now")

    def trained(self, call: Call, report: LanguageReport) -> None:
        """Sends a new adapter to the engines; goes back after too many bad updates. RunFailed."""
        self._reporter.event(
            "language_trained",
            n_updates=report.n_updates,
            updates=report.updates,
            world_model_updates=self._progress.updates,
        )
        if self._schedule.done("llm", report.n_updates, int(call.args[0])):
            self._reporter.event("schedule_phase", phase="wm", cause="")
        if report.adapter is not None:
            self.publishing.publish(report.adapter)
        self._rollback.trained(call, report)
        if report.metrics:
            n_rollbacks = float(self._patient.n_rollbacks)
            self._reporter.language({**report.metrics, "language_rollbacks": n_rollbacks})
