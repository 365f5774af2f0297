"""Keeps the share of samples whose targets were searched again at the wanted one.

A closed loop over counters, never over clocks, so that a serial run repeats: the learner tells of
each call which share of its samples was refreshed; while the share is too low, calls are issued.
What a refresh does shows late, in samples that are drawn after it, so the pace is bounded too: by
what was played.
"""

from __future__ import annotations

from collections import deque

from actors.reanalysis import ReanalysisReport
from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.roster import Roster
from learner.learner import TrainReport

REFRESHES_PER_INSERT = 2.0  # above 1, so that any share can be held while segments come and go
# Sampled positions that the share is taken over, a standard error of 3 %. Over more of them the
# loop would learn late of what it did, and refresh too much before it stops.
RECENT_POSITIONS = 256


class RecentShare:
    """Share of refreshed positions among the latest sampled ones, at least RECENT_POSITIONS."""

    def __init__(self) -> None:
        self._calls: deque[tuple[int, float]] = deque()  # positions, refreshed positions
        self._n_positions = 0

    def add(self, n_positions: int, share: float) -> None:
        self._calls.append((n_positions, share * n_positions))
        self._n_positions += n_positions
        while self._n_positions - self._calls[0][0] >= RECENT_POSITIONS:
            self._n_positions -= self._calls.popleft()[0]

    @property
    def share(self) -> float | None:
        """None before anything was sampled."""
        if not self._calls:
            return None
        return sum(refreshed for _, refreshed in self._calls) / self._n_positions


class RefreshLoop:
    """Owned by the controller; one call is in flight at most, and nobody waits for it."""

    def __init__(
        self, config: Config, calls: CallBook, fleet: Fleet, roster: Roster, progress: Progress
    ) -> None:
        self._config = config
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._progress = progress
        self._recent = RecentShare()
        self._allowed = 0.0  # positions that may be refreshed now
        self._sleeps_until = 0  # learner updates; nothing was older than the weights until then

    def issue(self) -> None:
        """Have some segments refreshed if too few samples are."""
        child = self._fleet.reanalyser
        if not self._roster.takes_work(child) or self._calls.n_in_flight("refresh", child=child):
            return
        if self._is_wanted():
            n_segments = self._config.reanalysis.segments_per_call
            self._calls.issue(child, "refresh", n_segments, self._progress.env_steps)

    def inserted(self, n_positions: int) -> None:
        """Allow for positions that came in; with the share reached, one call's worth at most."""
        self._allowed += REFRESHES_PER_INSERT * n_positions
        if not self._is_short():
            most = self._config.reanalysis.segments_per_call * self._config.acting.segment_length
            self._allowed = min(self._allowed, float(most))

    def trained(self, report: TrainReport) -> None:
        """Take in what the learner sampled."""
        n_positions = report.n_updates * self._config.learner.batch_size
        self._recent.add(n_positions, report.metrics["reanalysed_share"])

    def answered(self, report: ReanalysisReport) -> None:
        """Where nothing had older targets, nothing has before newer weights are published."""
        self._progress.refreshed(report)
        self._allowed -= report.n_trainable
        if report.n_segments == 0:
            wait = self._config.learner.publish_every
            self._sleeps_until = self._progress.updates + wait

    def _is_wanted(self) -> bool:
        is_allowed = self._allowed > 0.0 and self._progress.updates >= self._sleeps_until
        return is_allowed and self._is_short()

    def _is_short(self) -> bool:
        share = self._recent.share
        return share is not None and share < self._config.reanalysis.share
