"""Schedules that follow the recent return: bounds, cool-down, and the same again after a resume."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.collect_report import CollectReport, EpisodeRecord
from launch.control.adapting import Adapting
from launch.control.adaptive import (
    AdaptiveConfig,
    AdaptiveState,
    Change,
    Scales,
    observe,
    scales_of,
)
from launch.control.progress import Progress

SMALL = AdaptiveConfig(
    learning_rate=True,
    exploration=True,
    episodes_per_look=2,
    stall_looks=2,
    cooldown_env_steps=0,
)
configs = st.builds(
    AdaptiveConfig,
    learning_rate=st.booleans(),
    exploration=st.booleans(),
    episodes_per_look=st.integers(1, 4),
    stall_looks=st.integers(1, 3),
    min_gain=st.floats(0.0, 1.0),
    cooldown_env_steps=st.integers(0, 60),
    learning_rate_factor=st.floats(0.1, 3.0),
    learning_rate_min=st.floats(0.05, 1.0),
    learning_rate_max=st.floats(1.0, 5.0),
    exploration_factor=st.floats(1.01, 5.0),
    exploration_min=st.floats(0.05, 1.0),
    exploration_max=st.floats(1.0, 5.0),
)
returns = st.one_of(st.floats(-10.0, 10.0), st.integers(0, 3).map(float), st.floats(allow_nan=True))
episodes = st.lists(st.tuples(returns, st.integers(0, 20)), max_size=80)  # return, length


def play(
    state: AdaptiveState, config: AdaptiveConfig, played: list[tuple[float, int]], at: int = 0
) -> tuple[AdaptiveState, list[tuple[int, Change]], int]:
    """State, changes with the env steps at which they came, and env steps at the end."""
    changes = []
    for episode_return, length in played:
        at += length
        state, change = observe(state, config, episode_return, at)
        if change is not None:
            changes.append((at, change))
    return state, changes, at


@given(configs, episodes)
def test_bounds_are_never_left_and_the_cool_down_is_kept(config, played):
    state, last = AdaptiveState(), None
    at = 0
    for episode_return, length in played:
        at += length
        before = scales_of(state, config)
        state, change = observe(state, config, episode_return, at)
        now = scales_of(state, config)
        assert config.learning_rate_min <= state.learning_rate <= config.learning_rate_max
        assert config.exploration_min <= state.exploration <= config.exploration_max
        assert config.learning_rate or state.learning_rate == 1.0
        assert config.exploration or state.exploration == 1.0
        assert (change is None) == (before == now)  # each change is told, and nothing else
        if change is not None:
            assert (change.learning_rate, change.exploration) == (
                state.learning_rate,
                state.exploration,
            )
            assert last is None or at - last >= config.cooldown_env_steps
            last = at
            if config.exploration and change.cause == "stall":
                assert now.exploration >= before.exploration
            if config.exploration and change.cause == "improvement":
                assert now.exploration <= before.exploration


@given(configs, episodes, st.integers(0, 80))
def test_a_resume_goes_on_exactly_as_if_there_had_been_none(config, played, cut):
    whole, changes, _ = play(AdaptiveState(), config, played)
    again, same, _ = play(AdaptiveState(), config, played)
    assert (whole, changes) == (again, same)

    first, before, at = play(AdaptiveState(), config, played[:cut])
    saved = Progress(n_actors=1)
    saved.adaptive = first
    restored = Progress(n_actors=1)
    restored.restore(json.loads(json.dumps(saved.state())))
    assert restored.adaptive == first
    rest, after, _ = play(restored.adaptive, config, played[cut:], at)
    assert (rest, before + after) == (whole, changes)


def test_a_stall_raises_exploration_and_lowers_the_step_size_to_their_bounds():
    state, changes, _ = play(AdaptiveState(), SMALL, [(1.0, 1)] * 60)
    assert {change.cause for _, change in changes} == {"stall"}
    scales = [change.exploration for _, change in changes]
    assert scales == [1.25, 1.5625, 1.953125, 2.0] or scales == sorted(scales)
    assert (state.exploration, state.learning_rate) == (2.0, 0.1)
    assert len(changes) == 4  # at their bounds nothing changes, and nothing is told


def test_improvement_tightens_and_takes_the_step_size_back():
    stalled, _, at = play(AdaptiveState(), SMALL, [(1.0, 1)] * 20)
    assert stalled.exploration > 1.0 and stalled.learning_rate < 1.0
    rising = [(float(number), 1) for number in range(2, 60)]
    state, changes, _ = play(stalled, SMALL, rising, at)
    assert {change.cause for _, change in changes} == {"improvement"}
    assert (state.exploration, state.learning_rate) == (0.5, 1.0)
    assert all(change.mean_return > change.reference for _, change in changes)


def test_noise_is_no_improvement():
    """Blocks of the same two returns: their means are equal up to rounding."""
    config = replace(SMALL, min_gain=0.0)
    _, changes, _ = play(AdaptiveState(), config, [(0.1, 1), (0.2, 1), (0.2, 1), (0.1, 1)] * 20)
    assert {change.cause for _, change in changes} == {"stall"}


def test_bounds_that_became_narrower_hold_at_once_after_a_resume():
    state = AdaptiveState(learning_rate=0.1, exploration=2.0)
    config = replace(SMALL, learning_rate_min=0.5, exploration_max=1.5)
    assert scales_of(state, config) == Scales(0.5, 1.5)
    assert scales_of(state, AdaptiveConfig()) == Scales(1.0, 1.0)


class Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, dict]] = []

    def event(self, kind: str, **fields: object) -> None:
        self.told.append((kind, fields))


@pytest.mark.parametrize("is_on", [False, True])
def test_each_change_is_an_event_and_nothing_is_scaled_while_off(is_on):
    config = replace(SMALL, learning_rate=is_on, exploration=is_on)
    progress, events = Progress(n_actors=1), Events()
    adapting = Adapting(config, progress, events)
    assert adapting.scales == (Scales(1.0, 1.0) if is_on else None)
    episode = EpisodeRecord(0, 0, "level", 1.0, 7, "terminated", None)
    for _ in range(6):
        report = CollectReport(env_steps=7, episodes=[episode])
        progress.collected("env-actor-0", report)
        adapting.collected(report)
    if not is_on:
        assert adapting.scales is None and events.told == []
        return
    assert adapting.scales == Scales(0.5, 1.25)
    ((kind, fields),) = events.told
    assert kind == "adapted"
    assert fields == {
        "cause": "stall",
        "env_steps": 42,
        "mean_return": 1.0,
        "reference": 1.0,
        "learning_rate_scale": 0.5,
        "exploration_scale": 1.25,
    }
    assert progress.close_window()["adaptive_exploration_scale"] == 1.25


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400)
)


@given(
    st.dictionaries(
        st.sampled_from([*AdaptiveState().to_json()]),
        values | st.lists(values, max_size=3),
        max_size=3,
    )
)
def test_any_saved_state_is_finite_or_refused_by_name(changes):
    content = {**AdaptiveState().to_json(), **changes}
    try:
        state = AdaptiveState.from_json(content)
    except ValueError as error:
        assert "adaptive." in str(error)
        return
    numbers = (state.learning_rate, state.exploration, state.reference_std, *state.block)
    assert all(math.isfinite(number) for number in numbers)
    observe(state, SMALL, 1.0, 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episodes_per_look": 0}, "episodes_per_look must be at least 1, got 0"),
        ({"min_gain": math.nan}, "min_gain must not be negative"),
        ({"exploration_factor": 1.0}, "exploration_factor must lie above 1"),
        ({"learning_rate_factor": 0.0}, "learning_rate_factor must lie above 0"),
        ({"exploration_min": 1.5}, "exploration_min must lie in"),
        ({"learning_rate_max": 0.5}, "learning_rate_max must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(ValueError, match=f"adaptive.{words}"):
        AdaptiveConfig(**changes)
