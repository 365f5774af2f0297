"""Keeps the learner busy: how many train calls it gets, and when none."""

from __future__ import annotations

from launch.config import Config
from launch.control.adapting import Adapting
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.pacing import TRAINS_IN_FLIGHT, train_chunk
from launch.control.rate_limiter import RateLimiter
from launch.control.roster import Roster
from launch.control.schedule import Schedule
from learner.config import StepScales


class Training:
    """Owned by the controller, called from its one thread."""

    def __init__(
        self,
        config: Config,
        calls: CallBook,
        fleet: Fleet,
        roster: Roster,
        limiter: RateLimiter,
        schedule: Schedule,
        adapting: Adapting,
    ) -> None:
        self._config = config
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._limiter = limiter
        self._schedule = schedule
        self._adapting = adapting
        self._train_chunk = train_chunk(config)

    def issue(self) -> None:
        """Has the learner train as far as limiter and schedule allow."""
        calls, learner = self._calls, self._fleet.learner
        if not self._roster.takes_work(learner):
            return
        takes_turns = self._config.schedule.off_policy_degree == 0
        if takes_turns and calls.n_in_flight("collect", "add"):
            return
        most = self._config.control.updates_per_call
        while calls.n_in_flight("train", child=learner) < TRAINS_IN_FLIGHT:
            n_updates = self._schedule.wm_updates(most)
            if not n_updates or not self._limiter.may_sample(self._train_chunk):
                return
            self._limiter.sample(n_updates * self._config.learner.batch_size)
            self._schedule.issued("wm", n_updates)
            calls.issue(learner, "train", n_updates, *self._scales())

    def _scales(self) -> tuple[StepScales, ...]:
        """An argument more while schedules adapt."""
        scales = self._adapting.scales
        return () if scales is None else (StepScales(scales.learning_rate, scales.exploration),)
