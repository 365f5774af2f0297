"""The reward pays each pixel of new ground once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.envs.mario_reward import (
    CLEAR_REWARD,
    DEATH_REWARD,
    PROGRESS_CAP_PX,
    PROGRESS_SCALE,
    EpisodeReward,
)


def _total(start_x: int, xs: list[int]) -> float:
    reward = EpisodeReward(start_x)
    return sum(reward.pay(x, is_dead=False, is_clear=False)[0] for x in xs)


@given(start_x=st.integers(0, 500), moves=st.lists(st.integers(-40, 40), max_size=60))
def test_the_total_is_the_furthest_x_however_often_it_is_crossed(
    start_x: int, moves: list[int]
) -> None:
    xs, x = [], start_x
    for move in moves:
        x = max(0, x + move)
        xs.append(x)
    furthest = max([start_x, *xs])
    assert _total(start_x, xs) == pytest.approx((furthest - start_x) * PROGRESS_SCALE)


def test_the_start_position_pays_nothing() -> None:
    assert _total(40, [40, 30, 40]) == 0.0


def test_a_leap_through_a_pipe_is_capped_and_not_paid_later() -> None:
    assert _total(100, [1800, 1700, 1800]) == PROGRESS_CAP_PX * PROGRESS_SCALE


def test_death_and_the_way_out_add_their_share() -> None:
    reward = EpisodeReward(0)
    assert reward.pay(16, is_dead=True, is_clear=False) == (1 + DEATH_REWARD, 16)
    assert reward.pay(32, is_dead=False, is_clear=True) == (1 + CLEAR_REWARD, 16)
    assert reward.max_x == 32


def test_a_copy_goes_its_own_way() -> None:
    reward = EpisodeReward(10)
    copy = reward.copy()
    reward.pay(50, is_dead=False, is_clear=False)
    assert (copy.start_x, copy.max_x, reward.max_x) == (10, 10, 50)
