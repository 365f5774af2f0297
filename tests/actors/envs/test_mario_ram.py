"""Decoding memory: plain Python values in range, whatever the memory holds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actors.envs.mario_ram import read_state, read_tiles
from actors.envs.mario_text import describe, state_key

MEMORY = arrays(np.uint8, 2048)


@settings(max_examples=60)
@given(MEMORY)
def test_any_memory_decodes_into_plain_values_in_range(ram: np.ndarray) -> None:
    state = read_state(ram)
    numbers = (state.x, state.y, state.speed_x, state.speed_y, state.time, state.score, state.coins)
    assert all(type(number) is int for number in numbers)
    assert 0 <= state.x < 65_536
    assert -128 <= state.speed_x <= 127
    assert state.power in ("small", "big", "fire")
    assert not (state.is_dead and state.is_flag)
    assert len(state.enemies) <= 5
    tiles = read_tiles(ram, state.x)
    assert tiles.shape == (13, 16) and tiles.dtype == np.uint8
    line = describe(state, tiles)
    assert "\n" not in line and line.endswith(".")
    assert "\n" not in state_key(state, tiles)


def _memory(**bytes_at: int) -> np.ndarray:
    ram = np.zeros(2048, dtype=np.uint8)
    for name, value in bytes_at.items():
        ram[int(name.removeprefix("at_"), 16)] = value
    return ram


def test_positions_join_their_page_without_wrapping() -> None:
    state = read_state(_memory(at_6d=12, at_86=89, at_b5=1, at_ce=176))
    assert (state.x, state.y) == (12 * 256 + 89, 79)


def test_above_the_screen_is_higher_and_in_a_pit_is_negative() -> None:
    above, pit = read_state(_memory(at_b5=0, at_ce=250)), read_state(_memory(at_b5=2, at_ce=10))
    assert above.y == 261
    assert pit.y == -11 and pit.is_dead


def test_speeds_are_signed() -> None:
    state = read_state(_memory(at_57=0xF0, at_9f=0xFB, at_b5=1))
    assert (state.speed_x, state.speed_y) == (-16, -5)


def test_the_pole_needs_a_flag_so_that_a_vine_is_none() -> None:
    vine = read_state(_memory(at_b5=1, at_1d=3))
    pole = read_state(_memory(at_b5=1, at_1d=3, at_18=0x31))
    castle = read_state(_memory(at_b5=1, at_770=2))
    assert [state.is_flag for state in (vine, pole, castle)] == [False, True, True]


def test_dying_is_dead() -> None:
    assert [_dead(engine) for engine in (0x08, 0x0B, 0x06)] == [False, True, True]


def _dead(engine: int) -> bool:
    return read_state(_memory(at_b5=1, at_0e=engine)).is_dead


@given(x=st.integers(0, 3000), column=st.integers(-3, 12), row=st.integers(0, 12))
def test_tiles_are_found_where_the_game_keeps_them(x: int, column: int, row: int) -> None:
    level_x = (x // 16 + column) * 16
    if level_x < 0:
        return
    ram = np.zeros(2048, dtype=np.uint8)
    ram[0x500 + (level_x // 256 & 1) * 208 + row * 16 + level_x % 256 // 16] = 0x54
    tiles = read_tiles(ram, x)
    assert tiles[row, 3 + column] == 0x54 and np.count_nonzero(tiles) == 1
