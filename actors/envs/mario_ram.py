"""Reads Super Mario Bros' state from the console's memory, as plain Python values.

Addresses were checked against the running game. Memory is read as `bytes`: numpy's uint8 would wrap
silently. The picture shows the state one frame later than memory does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_ENEMY_SLOTS = 5
TILE_ROWS, TILE_COLUMNS = 13, 16
COLUMNS_BEHIND = 3  # tile columns shown behind Mario; the other 12 lie ahead
TILE_PX = 16
SKY_PX = 32  # the tiles begin below the status bar

_FLOAT_ON_POLE = 3
_FLAG_KINDS = (0x31, 0x2D)  # star flag, Bowser: the pole, not a vine
_ENGINE_DEAD, _ENGINE_DYING = 0x06, 0x0B
_MODE_WORLD_END = 2
_POWERS = ("small", "big", "fire")
_ENEMY_NAMES = {
    **dict.fromkeys((0x00, 0x01, 0x03, 0x04), "koopa"),
    **dict.fromkeys((0x09, 0x0E, 0x0F, 0x10), "parakoopa"),
    **dict.fromkeys((0x0A, 0x0B, 0x14), "cheep"),
    **dict.fromkeys(range(0x1B, 0x20), "firebar"),
    **dict.fromkeys(range(0x24, 0x2D), "lift"),
    0x02: "buzzy",
    0x05: "hammer bro",
    0x06: "goomba",
    0x07: "blooper",
    0x08: "bullet",
    0x0C: "podoboo",
    0x0D: "plant",
    0x11: "lakitu",
    0x12: "spiny",
    0x15: "flame",
    0x2D: "bowser",
    0x2F: "vine",
    0x32: "spring",
}


@dataclass(frozen=True, slots=True)
class Enemy:
    """An active enemy or lift; positions as Mario's, speeds in the game's own units."""

    kind: str
    x: int  # pixels from the level's start
    y: int  # pixels above the bottom of the screen
    speed_x: int  # 1/16 pixel per frame, to the right
    speed_y: int  # pixels per frame, downwards


@dataclass(frozen=True, slots=True)
class MarioState:
    """The facts of one frame."""

    x: int  # pixels from the level's start
    y: int  # pixels above the bottom of the screen; 79 on flat ground, negative in a pit
    speed_x: int  # 1/16 pixel per frame, to the right
    speed_y: int  # pixels per frame, downwards
    is_airborne: bool
    power: str  # small, big or fire
    time: int  # the game's clock, counts down
    score: int
    coins: int
    stage: str  # such as "1-1"
    is_flag: bool  # the pole or the axe was reached
    is_dead: bool
    enemies: tuple[Enemy, ...]


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _height(page: int, pixel: int) -> int:
    """Pixels above the bottom of the screen; page 1 is the screen, 0 lies above it."""
    return 255 - ((page - 1) * 256 + pixel)


def _number(digits: bytes) -> int:
    value = 0
    for digit in digits:
        value = value * 10 + digit
    return value


def _enemies(memory: bytes) -> tuple[Enemy, ...]:
    return tuple(
        Enemy(
            kind=_ENEMY_NAMES[memory[0x16 + slot]],
            x=memory[0x6E + slot] * 256 + memory[0x87 + slot],
            y=_height(memory[0xB6 + slot], memory[0xCF + slot]),
            speed_x=_signed(memory[0x58 + slot]),
            speed_y=_signed(memory[0xA0 + slot]),
        )
        for slot in range(N_ENEMY_SLOTS)
        if memory[0x0F + slot] and memory[0x16 + slot] in _ENEMY_NAMES
    )


def _is_flag(memory: bytes) -> bool:
    on_pole = memory[0x1D] == _FLOAT_ON_POLE
    return memory[0x770] == _MODE_WORLD_END or (
        on_pole and any(kind in _FLAG_KINDS for kind in memory[0x16 : 0x16 + N_ENEMY_SLOTS])
    )


def is_over(memory: bytes) -> bool:
    """Whether this frame ends the episode: death or flag."""
    return memory[0x0E] in (_ENGINE_DEAD, _ENGINE_DYING) or memory[0xB5] > 1 or _is_flag(memory)


def read_time(memory: bytes) -> int:
    return _number(memory[0x7F8:0x7FB])


def read_stage(memory: bytes) -> str:
    return f"{memory[0x75F] + 1}-{memory[0x75C] + 1}"


def read_state(ram: NDArray[np.uint8]) -> MarioState:
    """Decode a [2048] uint8 memory; any content is accepted, also of a broken game."""
    memory = ram.tobytes()
    is_flag = _is_flag(memory)
    return MarioState(
        x=memory[0x6D] * 256 + memory[0x86],
        y=_height(memory[0xB5], memory[0xCE]),
        speed_x=_signed(memory[0x57]),
        speed_y=_signed(memory[0x9F]),
        is_airborne=memory[0x1D] in (1, 2),
        power=_POWERS[min(memory[0x756], 2)],
        time=read_time(memory),
        score=_number(memory[0x7DE:0x7E4]),
        coins=_number(memory[0x7ED:0x7EF]),
        stage=read_stage(memory),
        is_flag=is_flag,
        is_dead=not is_flag and is_over(memory),
        enemies=_enemies(memory),
    )


def read_tiles(ram: NDArray[np.uint8], x: int) -> NDArray[np.uint8]:
    """Tile numbers [13, 16] uint8 around a Mario at pixel x, 0 = empty; row 0 is the top.

    Column COLUMNS_BEHIND holds Mario's left edge. Tiles left of the level's start read as 0.
    """
    columns = x // TILE_PX - COLUMNS_BEHIND + np.arange(TILE_COLUMNS)
    pages = ram[0x500:0x6A0].reshape(2, TILE_ROWS, TILE_COLUMNS)
    tiles = pages[(columns // TILE_COLUMNS) & 1, :, columns % TILE_COLUMNS].T
    return np.where(columns >= 0, tiles, np.uint8(0))
