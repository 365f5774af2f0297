"""The three action sets as button bytes, in the order gym-super-mario-bros uses."""

from __future__ import annotations

from actors.envs.checks import check_choice
from actors.envs.config import ACTION_SETS
from actors.envs.emulator import (
    BUTTON_A,
    BUTTON_B,
    BUTTON_DOWN,
    BUTTON_LEFT,
    BUTTON_RIGHT,
    BUTTON_UP,
)

_RIGHT_ONLY = (
    0,
    BUTTON_RIGHT,
    BUTTON_RIGHT | BUTTON_A,
    BUTTON_RIGHT | BUTTON_B,
    BUTTON_RIGHT | BUTTON_A | BUTTON_B,
)
_SIMPLE = (*_RIGHT_ONLY, BUTTON_A, BUTTON_LEFT)
_COMPLEX = (
    *_SIMPLE,
    BUTTON_LEFT | BUTTON_A,
    BUTTON_LEFT | BUTTON_B,
    BUTTON_LEFT | BUTTON_A | BUTTON_B,
    BUTTON_DOWN,
    BUTTON_UP,
)
_SETS = {"right_only": _RIGHT_ONLY, "simple": _SIMPLE, "complex": _COMPLEX}
assert tuple(_SETS) == ACTION_SETS, (tuple(_SETS), ACTION_SETS)


def button_bytes(action_set: str) -> tuple[int, ...]:
    """The byte held for each action; raises ValueError for an unknown set."""
    check_choice("action_set", action_set, ACTION_SETS)
    return _SETS[action_set]
