"""Keeps the learner of the world model busy: how many calls it gets, and when none."""

from __future__ import annotations

from launch.config import Config
from launch.control.adapting import Adapting
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.live_control import LiveControl
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
        live: LiveControl,
    ) -> None:
        self._config = config
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._limiter = limiter
        self._schedule = schedule
        self._adapting = adapting
        self._live = live
        self._train_chunk = train_chunk(config)

    @property
    def has_data(self) -> bool:
        """Whether the limiter lets another call sample."""
        return self._limiter.may_sample(self._train_chunk)

    def issue(self) -> None:
        """As many updates as limiter and schedule allow."""
        calls, learner = self._calls, self._fleet.learner
        if not self._roster.takes_work(learner):
            return
        takes_turns = self._config.schedule.off_policy_degree == 0
        if takes_turns and calls.n_in_flight("collect", "add"):
            return
        most = self._config.control.updates_per_call
        while calls.n_in_flight("train", child=learner) < TRAINS_IN_FLIGHT:
            n_updates = self._schedule.wm_updates(most)
            if not n_updates or not self.has_data:
                return
            self._limiter.sample(n_updates * self._config.learner.batch_size)
            self._schedule.issued("wm", n_updates)
            calls.issue(learner, "train", n_updates, self._scales())

    def _scales(self) -> StepScales:
        """Of schedules that adapt and of the live page, one times the other."""
        by_hand, scales = self._live.settings.learning_rate_scale, self._adapting.scales
        if scales is None:
            return StepScales(by_hand)
        return StepScales(scales.learning_rate * by_hand, scales.exploration)
