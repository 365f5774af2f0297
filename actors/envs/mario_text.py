"""Mario's state as one line of text, and what each action is called, for a language model.

Distances are in tiles (16 pixels) from Mario, `+` is right and up; only what lies within 12 tiles
ahead is told. Numbers are rounded so that lines recur and a prior cache can hit; the exact ones are
in the environment's `info`. Costs about 0.1 ms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.envs.checks import check_choice
from actors.envs.config import ACTION_SETS
from actors.envs.mario_ram import (
    COLUMNS_BEHIND,
    SKY_PX,
    TILE_COLUMNS,
    TILE_PX,
    TILE_ROWS,
    Enemy,
    MarioState,
)

_PHRASES = (
    "do nothing",
    "walk right",
    "walk right and jump",
    "run right",
    "run right and jump",
    "jump",
    "walk left",
    "walk left and jump",
    "run left",
    "run left and jump",
    "duck",
    "climb up",
)
_N_PHRASES = {"right_only": 5, "simple": 7, "complex": 12}
assert tuple(_N_PHRASES) == ACTION_SETS, (tuple(_N_PHRASES), ACTION_SETS)

_VIEW_TILES = 12
_MAX_ENEMIES = 3
_GROUND_ROW = 11  # rows 11 and 12 are the floor
_GROUND_Y = 79  # Mario's height on the floor
_ENEMY_BELOW_PX = 8  # an enemy on the same floor reads 8 pixels lower than Mario
_TIME_STEP = 20  # clock ticks of 0.33 s
_PASSABLE = (0x00, 0x24, 0x25, 0xC2, 0xC3)  # empty, flag pole, coins
_PIPES = (*range(0x10, 0x16), *range(0x1C, 0x22))
_POLE = (0x24, 0x25)
_QUESTION = (0xC0, 0xC1)
_COARSE_EDGES = (1, 2, 4, 8)


def action_phrases(action_set: str) -> tuple[str, ...]:
    """One phrase per action, in the order of the set."""
    check_choice("action_set", action_set, ACTION_SETS)
    return _PHRASES[: _N_PHRASES[action_set]]


def describe(state: MarioState, tiles: NDArray[np.uint8]) -> str:
    """One line for the state; tiles [13, 16] uint8 around Mario (mario_ram.read_tiles)."""
    motion = "in the air" if state.is_airborne else "on ground"
    time = round(state.time / _TIME_STEP) * _TIME_STEP
    line = (
        f"world {state.stage} time {time}; Mario {state.power} tile {state.x // TILE_PX} {motion} "
        f"height {_tiles_up(state.y)} speed {round(state.speed_x / 16):+d},{-state.speed_y:+d}"
    )
    facts = _terrain(state, tiles) + [_enemy_text(state, enemy) for enemy in _nearest(state)]
    return "; ".join([line, *facts]) + "."


def state_key(state: MarioState, tiles: NDArray[np.uint8]) -> str:
    """A coarse name of the state: states that call for the same move mostly share it."""
    parts = [
        state.stage,
        "air" if state.is_airborne else "ground",
        f"v{state.speed_x // 16}",
        f"h{_tiles_up(state.y)}",
    ]
    for name, column in (("pit", _first_pit(tiles)), ("wall", _first_wall(tiles))):
        parts.append(f"{name}{_coarse(column)}")
    for enemy in _nearest(state):
        parts.append(f"{enemy.kind}{_coarse((enemy.x - state.x) / TILE_PX)}")
    return " ".join(parts)


def _coarse(distance: float | None) -> str:
    if distance is None:
        return "-"
    side = "<" if distance < 0 else ">"
    return f"{side}{sum(abs(distance) >= edge for edge in _COARSE_EDGES)}"


def _tiles_up(y: int) -> int:
    return round((y - _GROUND_Y) / TILE_PX)


def _nearest(state: MarioState) -> list[Enemy]:
    near = [
        enemy
        for enemy in state.enemies
        if -COLUMNS_BEHIND * TILE_PX <= enemy.x - state.x <= _VIEW_TILES * TILE_PX
    ]
    return sorted(near, key=lambda enemy: abs(enemy.x - state.x))[:_MAX_ENEMIES]


def _half_tiles(pixels: int) -> float:
    return round(2 * pixels / TILE_PX) / 2 + 0.0  # + 0.0 turns -0.0 into 0.0


def _enemy_text(state: MarioState, enemy: Enemy) -> str:
    ahead = _half_tiles(enemy.x - state.x)
    up = _half_tiles(enemy.y + _ENEMY_BELOW_PX - state.y)
    moving = f" moving {'right' if enemy.speed_x > 0 else 'left'}" if enemy.speed_x else ""
    return f"{enemy.kind} {ahead:+.1f},{up:+.1f}{moving}"


def _terrain(state: MarioState, tiles: NDArray[np.uint8]) -> list[str]:
    """Pit, wall or pipe, question block and flag pole, each the nearest ahead."""
    facts = []
    pit = _first_pit(tiles)
    if pit is not None:
        facts.append(f"pit {pit} ahead width {_pit_width(tiles, pit)}")
    wall = _first_wall(tiles)
    if wall is not None:
        column = tiles[:, COLUMNS_BEHIND + wall]
        kind = "pipe" if column[_GROUND_ROW - 1] in _PIPES else "wall"
        facts.append(f"{kind} {wall} ahead height {_wall_height(column)}")
    for name, numbers in (("?block", _QUESTION), ("flag pole", _POLE)):
        rows, columns = np.nonzero(np.isin(tiles[:, COLUMNS_BEHIND:], numbers))
        if len(columns):
            nearest = int(columns.argmin())
            ahead, row = int(columns[nearest]), int(rows[nearest])
            up = _row_of(state.y) - row
            facts.append(f"{name} {ahead} ahead" + (f" {up} up" if name == "?block" else ""))
    return facts


def _row_of(y: int) -> int:
    """Tile row of Mario's feet: his top is 255 - y, the lower half of his sprite stands there."""
    return (255 - y + TILE_PX - SKY_PX) // TILE_PX


def _is_pit(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[16] bool: no floor at all in the column."""
    return np.isin(tiles[_GROUND_ROW:], _PASSABLE).all(axis=0)


def _first_pit(tiles: NDArray[np.uint8]) -> int | None:
    (ahead,) = np.nonzero(_is_pit(tiles)[COLUMNS_BEHIND:])
    return int(ahead[0]) if len(ahead) else None


def _pit_width(tiles: NDArray[np.uint8], pit: int) -> int:
    pits = _is_pit(tiles)[COLUMNS_BEHIND + pit :]
    return int(pits.argmin()) if not pits.all() else len(pits)


def _first_wall(tiles: NDArray[np.uint8]) -> int | None:
    """Nearest column ahead whose floor is raised above the floor of the column before it."""
    heights = [_wall_height(tiles[:, column]) for column in range(TILE_COLUMNS)]
    for ahead in range(1, TILE_COLUMNS - COLUMNS_BEHIND):
        column = COLUMNS_BEHIND + ahead
        if heights[column] > heights[column - 1]:
            return ahead
    return None


def _wall_height(column: NDArray[np.uint8]) -> int:
    """Solid tiles stacked on the floor without a gap; column [13]."""
    height = 0
    while height < _GROUND_ROW and column[_GROUND_ROW - 1 - height] not in _PASSABLE:
        height += 1
    return height


assert _GROUND_ROW < TILE_ROWS, (_GROUND_ROW, TILE_ROWS)
