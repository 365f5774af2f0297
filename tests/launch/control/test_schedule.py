"""Who may learn when: turns, sizes of phases, and nobody waits for one who can't."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.control.schedule import Schedule, ScheduleConfig


def make(name: str, *, has_language: bool = True, **settings_) -> Schedule:
    config = ScheduleConfig(
        name=name,
        **{
            "wm_train_freq": 6,
            "llm_train_freq": 4,
            "wm_update_iters": 20,
            "llm_update_iters": 10,
            **settings_,
        },
    )
    return Schedule(config, has_language=has_language)


def play(schedule: Schedule, n_turns: int, *, wm_call: int = 4, llm_call: int = 4) -> list[str]:
    """Each in turn issues what it may and has it done at once; the order of single updates."""
    order = []
    for _ in range(n_turns):
        for who, ask, most in (
            ("wm", schedule.wm_updates, wm_call),
            ("llm", schedule.llm_updates, llm_call),
        ):
            if n := ask(most):
                schedule.issued(who, n)
                order += [who] * n
                schedule.done(who, n, n)
    return order


def runs(order: list[str]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for who in order:
        if found and found[-1][0] == who:
            found[-1] = (who, found[-1][1] + 1)
        else:
            found.append((who, 1))
    return found


def test_in_parallel_one_gets_its_share_and_neither_is_held_back():
    schedule = make("parallel")
    order = play(schedule, 30)
    assert order.count("wm") == 30 * 4
    # A call is due after 6 updates, and calls of the world model bring 4.
    assert order.count("llm") == 4 * (30 * 4 // 8)


def test_rounds_of_both_follow_each_other():
    order = play(make("sequential"), 25)
    assert runs(order)[:6] == [("wm", 6), ("llm", 4)] * 3


@pytest.mark.parametrize("start", ["wm", "llm"])
def test_phases_alternate_from_the_one_that_begins(start):
    order = play(make("alternating", start_phase=start), 40)
    sizes = {"wm": 20, "llm": 10}
    other = {"wm": "llm", "llm": "wm"}[start]
    expected = [(start, sizes[start]), (other, sizes[other])] * 2
    assert runs(order)[:4] == expected


@pytest.mark.parametrize("name", ["parallel", "sequential", "alternating"])
def test_without_a_language_model_nothing_waits_for_it(name):
    schedule = make(name, has_language=False, start_phase="llm")
    assert [schedule.wm_updates(8) for _ in range(50)] == [8] * 50
    assert schedule.phase == "wm"


def test_a_language_model_with_nothing_to_learn_from_gives_its_turn_away():
    schedule = make("alternating", start_phase="llm")
    schedule.issued("llm", 4)
    assert schedule.wm_updates(8) == 0
    assert schedule.done("llm", 0, 4)
    assert schedule.phase == "wm" and schedule.wm_updates(8) == 8


def test_what_was_lost_is_asked_for_again():
    schedule = make("sequential")
    schedule.issued("wm", 6)
    assert schedule.wm_updates(8) == 0
    schedule.lost("wm", 6)
    assert schedule.wm_updates(8) == 6


@settings(max_examples=200)
@given(
    name=st.sampled_from(["sequential", "alternating"]),
    sizes=st.tuples(*[st.integers(1, 30)] * 2),
    calls=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=80
    ),
)
def test_no_phase_is_longer_than_it_says_and_somebody_always_may_learn(name, sizes, calls):
    keys = ("wm_update_iters", "llm_update_iters")
    if name == "sequential":
        keys = ("wm_train_freq", "llm_train_freq")
    schedule = make(name, **dict(zip(keys, sizes, strict=True)))
    limit = {"wm": sizes[0], "llm": sizes[1]}
    done = 0
    for most, short_by, is_lost in calls:
        who, may = schedule.phase, {"wm": schedule.wm_updates, "llm": schedule.llm_updates}
        n = may[who](most)
        assert n >= 1 and may["llm" if who == "wm" else "wm"](most) == 0
        schedule.issued(who, n)
        if is_lost:
            schedule.lost(who, n)
            continue
        n_done = max(n - short_by, 0)
        done += n_done
        assert done <= limit[who]
        if schedule.done(who, n_done, n):
            assert schedule.phase != who
            done = 0


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"name": "random"}, "name must be parallel, sequential or alternating, got 'random'"),
        ({"start_phase": "x"}, "start_phase must be wm or llm, got 'x'"),
        ({"wm_train_freq": 0}, "wm_train_freq must be at least 1, got 0"),
        ({"off_policy_degree": -2}, "off_policy_degree must be at least -1, got -2"),
    ],
)
def test_settings_are_checked(settings_, words):
    with pytest.raises(ValueError, match=words):
        ScheduleConfig(**settings_)
