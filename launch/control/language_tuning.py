"""When the language model is tuned, and its adapters on their way to the engine."""

from __future__ import annotations

from actors.prior.backend import PublishReport
from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.roster import Roster
from launch.control.runtime import Call
from learner.language.language_learner import LanguageReport


class LanguageTuning:
    """Owned by the controller; one call to the language learner is in flight at most."""

    def __init__(
        self,
        config: Config,
        calls: CallBook,
        fleet: Fleet,
        roster: Roster,
        progress: Progress,
        reporter: Reporter,
    ) -> None:
        self._config = config.language
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._progress = progress
        self._reporter = reporter
        self.tuned_at_update = 0  # of the world model
        self.is_prior_ready = False

    def issue(self) -> None:
        """Tune again once the world model has had enough updates since the last time."""
        learner = self._fleet.language_learner
        if not self._roster.takes_work(learner) or not self.is_prior_ready:
            return
        updates_since = self._progress.updates - self.tuned_at_update
        if updates_since < self._config.world_model_updates_per_call:
            return
        if not self._calls.n_in_flight("train", child=learner):
            self.tuned_at_update = self._progress.updates
            self._calls.issue(learner, "train", self._config.updates_per_call)

    def trained(self, report: LanguageReport) -> None:
        """Send a new adapter to the engine."""
        self._reporter.language(report.metrics)
        if report.adapter is not None:
            adapter = report.adapter
            self._calls.issue(self._fleet.prior_engine, "publish", adapter.version, adapter.path)

    def published(self, call: Call, report: PublishReport) -> None:
        """The engine took an adapter, or says why not."""
        self._reporter.event(
            "adapter_published",
            version=report.version,
            accepted=report.accepted,
            max_gap=report.max_gap,
            reason=report.reason,
        )
