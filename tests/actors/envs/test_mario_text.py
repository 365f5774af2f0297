"""The line of text and the phrases a language model reads."""

import dataclasses

import numpy as np

from actors.envs.mario_ram import Enemy, MarioState
from actors.envs.mario_text import action_phrases, describe, state_key

GROUND = MarioState(
    x=1209,
    y=79,
    speed_x=48,
    speed_y=0,
    is_airborne=False,
    power="small",
    time=383,
    score=0,
    coins=0,
    stage="1-1",
    is_flag=False,
    is_dead=False,
    enemies=(),
)


def _floor() -> np.ndarray:
    tiles = np.zeros((13, 16), dtype=np.uint8)
    tiles[11:] = 0x54
    return tiles


def test_an_empty_field_is_told_in_one_short_line() -> None:
    assert describe(GROUND, _floor()) == (
        "world 1-1 time 380; Mario small tile 75 on ground height 0 speed +3,+0."
    )


def test_everything_that_matters_ahead_is_told() -> None:
    tiles = _floor()
    tiles[11:, 3 + 7 : 3 + 10] = 0  # a pit
    tiles[9:11, 3 + 4] = 0x14  # a pipe
    tiles[7, 3 + 2] = 0xC0
    tiles[2:11, 3 + 11] = 0x25
    goomba = Enemy("goomba", x=1209 + 47, y=71, speed_x=-10, speed_y=0)
    far = Enemy("koopa", x=1209 + 400, y=71, speed_x=-10, speed_y=0)
    line = describe(dataclasses.replace(GROUND, enemies=(far, goomba)), tiles)
    assert line.split("; ")[2:] == [
        "pit 7 ahead width 3",
        "pipe 4 ahead height 2",
        "?block 2 ahead 3 up",
        "flag pole 11 ahead",
        "goomba +3.0,+0.0 moving left.",
    ]


def test_the_coarse_key_forgets_small_differences_and_keeps_large_ones() -> None:
    near, pit = _floor(), _floor()
    pit[11:, 3 + 1] = 0
    moved = dataclasses.replace(GROUND, x=GROUND.x + 5, time=370)
    assert state_key(GROUND, near) == state_key(moved, near)
    assert state_key(GROUND, near) != state_key(GROUND, pit)


def test_the_sets_share_their_first_phrases() -> None:
    complex_set = action_phrases("complex")
    assert complex_set[:7] == action_phrases("simple")
    assert complex_set[:5] == action_phrases("right_only")
    assert complex_set[4] == "run right and jump"
    assert len(set(complex_set)) == 12
