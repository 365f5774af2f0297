"""Settings that change while a run goes on: what is taken, what is refused, what is told."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.acting import ActingConfig
from actors.live_view import ViewWish
from actors.play_settings import PlaySettings
from actors.search import SearchConfig
from launch.config import Config
from launch.control.adaptive import AdaptiveConfig
from launch.control.live_control import (
    LOOK_PERIOD_S,
    MOST_ACTORS,
    TELL_PERIOD_S,
    UNSEEN_PERIOD_S,
    LiveControl,
)
from launch.control.live_file import LIVE_VIEW_PERIOD_S
from launch.control.live_settings import LiveSettings, knobs
from launch.control.progress import Progress
from launch.control.request_box import RequestDesk
from launch.control.runtime import Child

N_ACTORS = 6
CONFIG = Config(
    acting=ActingConfig(num_actors=N_ACTORS, temperature=1.0, temperature_decay_steps=1000),
    search=SearchConfig(n_simulations=20, leaves_per_call=2),
)


class Reporter:
    def __init__(self):
        self.events = []
        self.told = []

    def event(self, kind, **fields):
        json.dumps(fields, allow_nan=False)
        self.events.append({"event": kind, **fields})

    def live_settings(self, settings):
        self.told = json.loads(json.dumps(settings, allow_nan=False))


class World:
    """A run directory, a page at its desk, and the control that looks there."""

    def __init__(self, path, config=CONFIG):
        self.seconds = 0.0
        self.reporter = Reporter()
        self.progress = Progress(N_ACTORS, lambda: self.seconds)
        self.control = LiveControl(config, path, self.reporter, self.progress, lambda: self.seconds)
        self.control.begin()
        self.desk = RequestDesk(path)

    def ask(self, content):
        name = self.desk.put(content)
        self.look()
        return self.desk.answer(name)

    def set(self, setting, value):
        return self.ask({"ask": "setting", "setting": setting, "value": value})

    def look(self):
        self.seconds += LOOK_PERIOD_S
        self.control.look()

    def shown(self):
        return {row["name"]: row["value"] for row in self.reporter.told}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_each_change_is_an_event_with_old_and_new_value(world):
    world.progress.env_steps = 500
    assert world.set("temperature", 0.5).is_done
    assert world.set("simulations", 10).text == "simulations 20 → 10"
    assert world.set("learning_rate_scale", 2).is_done
    assert world.set("paused", True).is_done
    assert world.set("temperature", None).text == "temperature 0.5 → 0.625"
    changes = [(e["setting"], e["before"], e["after"]) for e in world.reporter.events]
    assert changes == [
        ("temperature", 0.625, 0.5),
        ("simulations", 20, 10),
        ("learning_rate_scale", 1.0, 2.0),
        ("paused", False, True),
        ("temperature", 0.5, 0.625),
    ]
    assert [e["follows"] for e in world.reporter.events] == [""] * 4 + ["the run's schedule"]
    assert {e["event"] for e in world.reporter.events} == {"setting_changed"}
    control = world.control
    assert control.play == PlaySettings(temperature=None, n_simulations=10)
    assert control.settings.learning_rate_scale == 2.0 and control.is_paused
    assert world.shown() == {
        "temperature": None,
        "simulations": 10,
        "learning_rate_scale": 2.0,
        "paused": True,
    }


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("temperature", 50, r"temperature must be a number in [0.01, 10], or null .*, got 50"),
        ("temperature", 0, "temperature must be .*, got 0"),
        ("temperature", "hot", "temperature must be .*, got 'hot'"),
        ("simulations", 21, r"simulations must be a whole number in [2, 20], .*, got 21"),
        ("simulations", 1, "simulations must be .*, got 1"),
        ("simulations", 3.5, "simulations must be .*, got 3.5"),
        ("learning_rate_scale", None, r"must be a number in [0.01, 10], got None"),
        ("paused", 1, "paused must be true or false, got 1"),
        ("learner.batch_size", 8, "'learner.batch_size' can't be changed .*these can: temperature"),
        (None, 8, "None can't be changed"),
    ],
)
def test_what_is_not_allowed_is_refused_and_changes_nothing(world, setting, value, message):
    answer = world.set(setting, value)
    assert not answer.is_done
    for part in message.replace("[", "\\[").split(".*"):
        assert part.replace("\\[", "[") in answer.text
    assert world.control.settings == LiveSettings() and world.control.play is None
    assert [e["event"] for e in world.reporter.events] == ["setting_refused"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["temperature", "simulations", "learning_rate_scale", "paused", "x"]) | JSON


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    request=st.fixed_dictionaries(
        {}, optional={"ask": st.just("setting") | JSON, "setting": NAMES, "value": JSON}
    )
    | JSON
)
def test_whatever_is_asked_for_settings_stay_within_their_bounds(world, request):
    before = world.control.settings
    answer = world.ask(request)
    now = world.control.settings
    assert answer is not None and answer.text
    assert answer.is_done or now == before
    assert now.temperature is None or 0.01 <= now.temperature <= 10
    assert now.simulations is None or 2 <= now.simulations <= 20
    assert type(now.simulations) in (int, type(None))
    assert 0.01 <= now.learning_rate_scale <= 10
    assert isinstance(now.paused, bool)


def test_a_checkpoint_that_is_asked_for_is_wanted_once(world):
    assert not world.control.take_checkpoint_wish()
    assert world.ask({"ask": "checkpoint"}).is_done
    assert world.control.take_checkpoint_wish() and not world.control.take_checkpoint_wish()


def now_in_force(world, name):
    return {row["name"]: row["now"] for row in world.reporter.told}[name]


def test_pages_see_what_schedules_come_to_as_the_run_goes_on(world):
    assert now_in_force(world, "temperature") == 1.0
    world.progress.env_steps = 500
    world.seconds += TELL_PERIOD_S
    world.look()
    assert now_in_force(world, "temperature") == 0.625
    world.reporter.told = "told again"
    world.seconds += TELL_PERIOD_S
    world.look()
    assert world.reporter.told == "told again", "only what changed is written"


def test_a_temperature_in_force_has_what_adapting_schedules_add(tmp_path):
    adaptive = AdaptiveConfig(exploration=True)
    world = World(tmp_path, replace(CONFIG, adaptive=adaptive))
    world.progress.adaptive = replace(world.progress.adaptive, exploration=1.5)
    world.progress.env_steps = 500
    world.seconds += TELL_PERIOD_S
    world.look()
    assert now_in_force(world, "temperature") == 0.9375
    assert world.set("temperature", 0.5).text == "temperature 0.9375 → 0.5"
    assert now_in_force(world, "temperature") == 0.5


def wishes(world, seconds, step=0.1):
    """What six env actors were asked to show, each at every turn."""
    found = []
    for _ in range(round(seconds / step)):
        world.seconds += step
        world.control.look()
        for index in range(N_ACTORS):
            wish = world.control.wish_for(Child(f"env-actor-{index}", "env_actor", None))
            if wish is not None:
                found.append((index, wish))
    return found


def test_while_nobody_looks_one_environment_is_shown_now_and_then(world):
    found = wishes(world, 3 * UNSEEN_PERIOD_S - 1)
    assert [wish for _, wish in found] == [ViewWish(1, closely=0)] * 3


def test_who_looks_is_shown_some_actors_once_a_period_and_one_closely(world):
    wishes(world, 1.0)
    world.desk.look(5, 3)
    found = wishes(world, 4.0)
    actors = [actor for actor, _ in found]
    assert set(actors) == {*range(MOST_ACTORS), 5}
    assert all(actors.count(actor) <= 4.0 / LIVE_VIEW_PERIOD_S + 1 for actor in set(actors))
    assert {wish for actor, wish in found if actor != 5} == {ViewWish(2)}
    assert {wish for actor, wish in found if actor == 5} == {ViewWish(2, closely=3)}
    world.desk.leave()
    world.look()
    assert wishes(world, 10.0) == []


def test_what_has_no_effect_is_not_offered():
    gumbel = replace(CONFIG, search=replace(CONFIG.search, variant="gumbel"))
    assert "temperature" in [knob.name for knob in knobs(CONFIG)]
    assert "temperature" not in [knob.name for knob in knobs(gumbel)]


def test_a_directory_without_requests_is_no_reason_to_stop(tmp_path):
    world = World(tmp_path)
    (tmp_path / "requests").rmdir()
    world.look()
    assert world.control.settings == LiveSettings()
