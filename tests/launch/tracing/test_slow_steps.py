"""When stacks are due: several slow steps within a window, and once a window."""

from hypothesis import given
from hypothesis import strategies as st

from launch.tracing.slow_steps import SlowSteps


def due_times(gaps: list[float], n_slow: int, window_s: float) -> list[float]:
    """Times of slow steps after which stacks were due."""
    steps, now, due = SlowSteps(n_slow, window_s), 0.0, []
    for gap in gaps:
        now += gap
        if steps.slow(now):
            due.append(now)
    return due


@given(
    gaps=st.lists(st.floats(0.0, 30.0), max_size=60),
    n_slow=st.integers(1, 5),
    window_s=st.floats(0.5, 60.0),
)
def test_stacks_are_due_as_the_definition_says(gaps, n_slow, window_s):
    now, slow, expected = 0.0, [], []
    for gap in gaps:
        now += gap
        slow.append(now)
        is_often = len(slow) >= n_slow and now - slow[-n_slow] <= window_s
        is_first = not expected or now - expected[-1] >= window_s
        if is_often and is_first:
            expected.append(now)
    assert due_times(gaps, n_slow, window_s) == expected


def test_one_slow_step_among_many_is_no_reason():
    assert due_times([100.0] * 5, 2, 60.0) == []
    assert due_times([1.0] * 100, 3, 60.0) == [3.0, 63.0]
