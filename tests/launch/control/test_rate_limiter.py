"""The limiter keeps the ratio, never blocks both sides, and survives a restart."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.control.rate_limiter import RateLimiter, RateLimiterConfig


def make(ratio=4.0, tolerance=0.0, min_positions=100, sample_chunk=64, insert_chunk=32):
    return RateLimiter(
        RateLimiterConfig(samples_per_insert=ratio, tolerance=tolerance),
        min_positions=min_positions,
        sample_chunk=sample_chunk,
        insert_chunk=insert_chunk,
    )


def test_nothing_is_sampled_before_the_minimum_size():
    limiter = make()
    limiter.insert(99)
    assert not limiter.may_sample(1)
    limiter.insert(1)
    assert limiter.may_sample(1)


def test_acting_waits_when_it_leads_and_learning_when_it_leads():
    limiter = make()
    while limiter.may_insert():
        limiter.insert(1)
    assert limiter.error > limiter.error_max
    assert limiter.may_sample(64)
    while limiter.may_sample(64):
        limiter.sample(64)
    assert limiter.error - 64 < limiter.error_min
    assert limiter.may_insert()


@given(
    ratio=st.floats(0.1, 256.0),
    spare=st.floats(0.0, 4.0),
    min_positions=st.integers(1, 5_000),
    sample_chunk=st.integers(1, 4_096),
    insert_chunk=st.integers(1, 2_048),
    moves=st.lists(st.tuples(st.booleans(), st.integers(0, 2_048)), max_size=60),
)
def test_no_reachable_state_has_both_sides_waiting(
    ratio, spare, min_positions, sample_chunk, insert_chunk, moves
):
    """Neither with the least tolerance nor with any that is accepted."""
    least = (insert_chunk * ratio + sample_chunk) / (min_positions * ratio)
    tolerance = math.nextafter(least * (1 + spare), math.inf) if spare else 0.0
    limiter = make(ratio, tolerance, min_positions, sample_chunk, insert_chunk)
    for inserts, n_positions in moves:
        if inserts and limiter.may_insert():
            limiter.insert(min(n_positions, insert_chunk))
        elif limiter.may_sample(sample_chunk):
            limiter.sample(sample_chunk)
        assert limiter.may_insert() or limiter.may_sample(sample_chunk)


@given(st.integers(1, 64), st.floats(0.5, 64.0), st.integers(10, 500))
def test_a_run_paced_by_the_limiter_keeps_its_ratio(chunk, ratio, min_positions):
    limiter = make(ratio, 0.0, min_positions, sample_chunk=chunk, insert_chunk=8)
    half_band = (limiter.error_max - limiter.error_min) / 2
    for _ in range(400):
        while limiter.may_sample(chunk):
            limiter.sample(chunk)
        if limiter.may_insert():
            limiter.insert(8)
        wanted = (limiter.inserted - min_positions) * ratio
        if limiter.inserted >= min_positions:
            assert abs(limiter.sampled - wanted) <= half_band + 8 * ratio


def test_state_survives_a_restart():
    limiter = make()
    limiter.insert(500)
    limiter.sample(640)
    again = make()
    again.restore(limiter.state())
    assert (again.inserted, again.sampled, again.error) == (500, 640, limiter.error)


def test_a_changed_ratio_rebases_so_that_no_side_storms_ahead():
    limiter = make(ratio=4.0)
    limiter.insert(1_100)
    limiter.sample(4_000)
    again = make(ratio=16.0)
    again.restore(limiter.state())
    assert again.error_min <= again.error <= again.error_max
    assert again.inserted == 1_100


@pytest.mark.parametrize(
    ("field", "value"),
    [("samples_per_insert", 0.0), ("samples_per_insert", -1.0), ("tolerance", -0.5)],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"limiter.{field}.*{value}"):
        RateLimiterConfig(**{field: value})


def test_a_band_that_could_deadlock_is_refused_with_the_inequality():
    words = r"tolerance=0.25 .* 0.25 \* 100 \* 4 = 100 .* 32 \* 4 \+ 64 = 192; raise it to 0.48"
    with pytest.raises(ValueError, match=words):
        make(tolerance=0.25)
    assert make(tolerance=0.48).error_max == make(tolerance=0.0).error_max


@given(st.floats(0.1, 256.0), st.integers(1, 5_000), st.integers(1, 4_096), st.integers(1, 2_048))
def test_the_tolerance_that_the_message_names_is_accepted(ratio, minimum, sample, insert):
    sizes = dict(min_positions=minimum, sample_chunk=sample, insert_chunk=insert)
    least = (insert * ratio + sample) / (minimum * ratio)
    with pytest.raises(ValueError, match="raise it to") as refused:
        make(ratio, tolerance=least / 2, **sizes)
    named = re.search(r"raise it to ([^,]+),", str(refused.value))[1]
    make(ratio, tolerance=float(named), **sizes)
