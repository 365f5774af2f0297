"""Applies the adaptive schedules: takes in finished episodes, tells of every change."""

from __future__ import annotations

from actors.collect_report import CollectReport
from launch.control.adaptive import AdaptiveConfig, Scales, observe, scales_of
from launch.control.progress import Progress
from launch.control.reporter import Reporter


class Adapting:
    """Owned by the controller. What it remembers is in the progress, and saved with it."""

    def __init__(self, config: AdaptiveConfig, progress: Progress, reporter: Reporter) -> None:
        self._config = config
        self._progress = progress
        self._reporter = reporter

    @property
    def scales(self) -> Scales | None:
        """What the next calls are to be scaled by; None while nothing is to adapt."""
        if not self._config.is_on:
            return None
        return scales_of(self._progress.adaptive, self._config)

    def collected(self, report: CollectReport) -> None:
        """Call it when the progress has counted the report's env steps."""
        if not self._config.is_on:
            return
        for episode in report.episodes:
            self._progress.adaptive, change = observe(
                self._progress.adaptive,
                self._config,
                episode.total_reward,
                self._progress.env_steps,
            )
            if change is not None:
                self._reporter.event(
                    "adapted",
                    cause=change.cause,
                    env_steps=self._progress.env_steps,
                    mean_return=change.mean_return,
                    reference=change.reference,
                    learning_rate_scale=change.learning_rate,
                    exploration_scale=change.exploration,
                )
