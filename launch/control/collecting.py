"""Keeps env actors busy: how many calls each gets, and when none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from actors.play_settings import PlaySettings
from launch.config import Config
from launch.control.adapting import Adapting
from launch.control.call_book import CallBook
from launch.control.fleet import Fleet
from launch.control.live_control import LiveControl
from launch.control.pacing import COLLECTS_IN_FLIGHT, train_chunk
from launch.control.progress import Progress
from launch.control.rate_limiter import RateLimiter
from launch.control.roster import Roster
from launch.control.runtime import Call, Child
from launch.control.supervision import START_BUDGET_S

ADDS_IN_FLIGHT_PER_ACTOR = 4


class Collecting:
    """Owned by the controller, called from its one thread."""

    def __init__(
        self,
        config: Config,
        calls: CallBook,
        fleet: Fleet,
        roster: Roster,
        progress: Progress,
        limiter: RateLimiter,
        adapting: Adapting,
        live: LiveControl,
    ) -> None:
        self._config = config
        self._calls = calls
        self._fleet = fleet
        self._roster = roster
        self._progress = progress
        self._limiter = limiter
        self._adapting = adapting
        self._live = live
        self._train_chunk = train_chunk(config)
        self._issued_env_steps = 0
        self._warm: dict[str, Child] = {}  # have collected; the first time they compile
        self._askable: set[int] = set()  # env actors that may take a call, by index

    def begin(self) -> None:
        """What was collected before this process needs not be collected again."""
        self._issued_env_steps = self._progress.env_steps

    def issue(self) -> None:
        """Gives every env actor that takes work as much as the limiter and the adds allow."""
        if not self._askable or not self._has_steps_left or not self._may_play():
            return
        for index in sorted(self._askable):
            child = self._fleet.env_actors[index]
            while self._has_steps_left and self._may_take_a_call(child):
                self._issue(child)
            if not self._has_steps_left:
                return  # until the steps of a call are lost
            self._askable.remove(index)

    def answered(self, child: Child) -> None:
        """A child answered something; whoever begins to take work, or may take more, did that."""
        if child.role == "env_actor":
            self._askable.add(child.index)

    def collected(self, child: Child) -> None:
        self._warm[child.name] = child

    def lost(self, calls: Iterable[Call]) -> None:
        """Env steps of calls that will not be answered are to be asked for again."""
        self._issued_env_steps -= sum(int(c.args[0]) for c in calls if c.method == "collect")

    def _issue(self, child: Child) -> None:
        left = self._config.total_env_steps - self._issued_env_steps
        n_steps = min(self._config.acting.collect_steps, left)
        self._issued_env_steps += n_steps
        is_first = self._warm.get(child.name) is not child
        self._calls.issue(
            child,
            "collect",
            n_steps,
            self._progress.env_steps,
            self._live.wish_for(child),
            self._play(),
            deadline_s=self._config.control.collect_deadline_s + is_first * START_BUDGET_S,
            with_payload=True,
        )

    def _play(self) -> PlaySettings | None:
        """What a live page asks for, and how far schedules have widened exploration."""
        scales = self._adapting.scales
        if scales is None:
            return self._live.play
        return replace(self._live.play or PlaySettings(), exploration=scales.exploration)

    @property
    def _has_steps_left(self) -> bool:
        return self._issued_env_steps < self._config.total_env_steps

    def _may_play(self) -> bool:
        """Whether anybody may, as far as issuing a call to one changes nothing in that."""
        n_adds = self._calls.n_in_flight("add")
        if n_adds >= ADDS_IN_FLIGHT_PER_ACTOR * len(self._fleet.env_actors):
            return False
        return self._limiter.may_insert() and not self._is_too_far_ahead()

    def _may_take_a_call(self, child: Child) -> bool:
        n_collects = self._calls.n_in_flight("collect", child=child)
        return n_collects < COLLECTS_IN_FLIGHT and self._roster.takes_work(child)

    def _is_too_far_ahead(self) -> bool:
        """Of learning, by `schedule.off_policy_degree`; never where learning can't catch up."""
        degree = self._config.schedule.off_policy_degree
        n_training = self._calls.n_in_flight("train", child=self._fleet.learner)
        if degree < 0 or not (n_training or self._limiter.may_sample(self._train_chunk)):
            return False
        n_due = (self._limiter.error - self._limiter.error_min) / self._config.learner.batch_size
        return n_due + n_training * self._config.control.updates_per_call > degree
