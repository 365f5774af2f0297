"""When the evaluator plays."""

from __future__ import annotations

from actors.evaluation import EvaluationReport
from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.roster import Roster


class Evaluating:
    """Owned by the controller; one call is in flight at most."""

    def __init__(
        self,
        config: Config,
        calls: CallBook,
        fleet: Fleet,
        roster: Roster,
        progress: Progress,
        reporter: Reporter,
    ) -> None:
        self._config = config.evaluation
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._progress = progress
        self._reporter = reporter
        self._due_step = 0

    def begin(self) -> None:
        """The first one is due a whole period from now."""
        self._due_step = self._progress.env_steps + self._config.every_env_steps

    def issue(self) -> None:
        """Plays some episodes if that is due and the evaluator is free."""
        is_due = self._progress.env_steps >= self._due_step and not self.is_busy
        if is_due and self._roster.takes_work(self._fleet.evaluator):
            self._due_step += self._config.every_env_steps
            self.play(self._config.n_episodes)

    def play(self, n_episodes: int) -> None:
        """Nothing, while there is no evaluator."""
        if self._roster.takes_work(self._fleet.evaluator):
            self._calls.issue(self._fleet.evaluator, "evaluate", n_episodes, True)

    @property
    def is_busy(self) -> bool:
        return bool(self._calls.n_in_flight("evaluate"))

    def answered(self, report: EvaluationReport) -> None:
        self._progress.evaluated(report)
        self._reporter.evaluation(report, self._progress.env_steps)
