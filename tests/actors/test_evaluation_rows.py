"""Ways of playing an evaluation, and the rows made of its episodes."""

from __future__ import annotations

import pytest

from actors.episodes import Episode, PlayStyle
from actors.evaluation_rows import WAYS, Way, rows_of


@pytest.mark.parametrize("is_gumbel", [False, True])
def test_each_way_has_its_own_chance(is_gumbel) -> None:
    given = {"temperature": 0.7, "sticky": 0.3, "is_gumbel": is_gumbel}
    styles = {way.label: way.style(**given) for way in WAYS}
    drawn = {"temperature": 0.7, "noise": is_gumbel}  # noise is the only chance of a Gumbel search
    assert styles == {
        "greedy, no-ops": PlayStyle(),
        "greedy, sticky": PlayStyle(sticky=0.3),
        "sampled, no-ops": PlayStyle(**drawn),
        "sampled, sticky": PlayStyle(**drawn, sticky=0.3),
    }


def episode(level: str, is_clear: bool | None, reward: float = 1.0) -> Episode:
    max_x = None if is_clear is None else 100
    return Episode(
        [], level, total_reward=reward, length=5, max_x=max_x, is_clear=is_clear, end="x"
    )


def test_a_row_for_each_stage_and_one_for_all() -> None:
    played = [episode("1-1", True, 3.0), episode("1-2", False), episode("1-1", False, 1.0)]
    rows = rows_of(Way("greedy", "no-ops"), played)
    assert [(row.stage, row.n_episodes, row.clear_rate.value) for row in rows] == [
        ("1-1", 2, 0.5),
        ("1-2", 1, 0.0),
        ("all", 3, 1 / 3),
    ]
    assert rows[0].returns.value == 2.0 and rows[0].max_x.value == 100.0
    (alone,) = rows_of(Way("greedy", "no-ops"), [episode("", None)])
    assert alone.clear_rate is None and alone.max_x is None and alone.ends == {"x": 1}
