"""What schedules that adapt and a live page ask for is in the calls that children get."""

from dataclasses import dataclass, field, replace

import pytest

from actors.acting import ActingConfig
from launch.config import Config
from launch.control.adapting import Adapting
from launch.control.adaptive import AdaptiveConfig
from launch.control.call_book import CallBook
from launch.control.collecting import Collecting
from launch.control.live_control import LOOK_PERIOD_S, LiveControl
from launch.control.pacing import make_limiter
from launch.control.progress import Progress
from launch.control.request_box import RequestDesk
from launch.control.roster import Roster
from launch.control.runtime import Call, Child
from launch.control.schedule import Schedule
from launch.control.training import Training

CONFIG = Config(
    acting=ActingConfig(num_actors=1, temperature=1.0),
    adaptive=AdaptiveConfig(learning_rate=True, exploration=True),
)


@dataclass
class Fleet:
    learner: Child = field(default_factory=lambda: Child("learner", "learner", None))
    env_actors: dict[int, Child] = field(
        default_factory=lambda: {0: Child("env-actor-0", "env_actor", None)}
    )

    def children(self) -> list[Child]:
        return [self.learner, *self.env_actors.values()]


class Reporter:
    def event(self, kind: str, **fields: object) -> None: ...

    def child_state(self, *fields: object) -> None: ...

    def live_settings(self, settings: object) -> None: ...


class World:
    """The parts of a controller that issue calls, and a page at its desk; nobody answers."""

    def __init__(self, path, config: Config) -> None:
        self.seconds = 0.0
        self.issued: dict[str, Call] = {}
        fleet, reporter = Fleet(), Reporter()
        calls = CallBook(self, 300.0)
        roster = Roster(fleet, reporter, 10, self.now)
        roster.begin()
        self.progress = Progress(1, self.now)
        self.live = LiveControl(config, path, reporter, self.progress, self.now)
        self.live.begin()
        self._desk = RequestDesk(path)
        limiter = make_limiter(config)
        adapting = Adapting(config.adaptive, self.progress, reporter)
        steers = (adapting, self.live)
        schedule = Schedule(config.schedule, has_language=False)
        self._training = Training(config, calls, fleet, roster, limiter, schedule, *steers)
        self._collecting = Collecting(config, calls, fleet, roster, self.progress, limiter, *steers)
        for child in fleet.children():
            roster.answered(child)
            self._collecting.answered(child)
        self._limiter = limiter

    def now(self) -> float:
        return self.seconds

    def call(self, child, method, *args, deadline_s, with_payload) -> Call:
        call = Call(child, method, self.seconds, deadline_s, answer=None, args=args)
        self.issued[method] = call
        return call

    def set(self, setting: str, value: object) -> None:
        name = self._desk.put({"ask": "setting", "setting": setting, "value": value})
        self.seconds += LOOK_PERIOD_S
        self.live.look()
        assert self._desk.answer(name).is_done

    def collect(self):
        """The play settings of a collect call."""
        self._collecting.issue()
        return self.issued["collect"].args[3]

    def train(self):
        """The scales of a train call."""
        self._limiter.insert(self._limiter.min_positions)
        self._training.issue()
        return self.issued["train"].args[1]


@pytest.fixture
def adapted(tmp_path) -> World:
    """A run whose schedules have moved both scales."""
    world = World(tmp_path, CONFIG)
    state = replace(world.progress.adaptive, learning_rate=0.5, exploration=1.5)
    world.progress.adaptive = state
    return world


def test_scales_of_the_schedules_reach_env_actors_and_the_learner(adapted):
    assert adapted.collect().exploration == 1.5
    scales = adapted.train()
    assert (scales.learning_rate, scales.entropy_weight) == (0.5, 1.5)


def test_a_learning_rate_scale_set_by_hand_multiplies_that_of_the_schedule(adapted, tmp_path):
    adapted.set("learning_rate_scale", 0.25)
    assert adapted.train().learning_rate == 0.125
    (tmp_path / "plain").mkdir()
    plain = World(tmp_path / "plain", replace(CONFIG, adaptive=AdaptiveConfig()))
    plain.set("learning_rate_scale", 0.25)
    assert plain.train().learning_rate == 0.25


def test_a_temperature_set_by_hand_reaches_env_actors_beside_the_schedule(adapted):
    adapted.set("temperature", 0.5)
    play = adapted.collect()
    assert (play.temperature, play.exploration) == (0.5, 1.5)
    assert play.temperature_or(1.0) == 0.5
