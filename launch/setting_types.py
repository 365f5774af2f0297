"""Values from YAML and JSON, checked against the annotations of the setting that they are for."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path

LONGEST_TEXT = 4_096
LONGEST_LIST = 1_000
LARGEST_INT = 2**63 - 1
_SHOWN = 100


class SettingError(ValueError):
    """A value that its setting can't take; the message says what is allowed."""


def shown(value: object) -> str:
    """`value` for a message: whole if it is short."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else _outline(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def typed(hint: object, value: object) -> object:
    """`value` as the annotation `hint` wants it: lists become tuples, texts paths, ints floats.

    `hint` is one that a setting has: bool, int, float, str, Path, Literal, tuple[T, ...] or a union
    of these with None. Raises SettingError.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(typing.get_args(hint), value)
    if origin is typing.Literal:
        return _choice(typing.get_args(hint), value)
    if origin is tuple:
        return _items(typing.get_args(hint)[0], value)
    return _SCALARS[hint](value)


def _outline(value: object) -> str:
    """Of something nested: never walked through, since it may be of any size and depth."""
    if isinstance(value, Mapping):
        return f"settings ({len(value)} of them)"
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


def _one_of(hints: tuple[object, ...], value: object) -> object:
    if value is None and type(None) in hints:
        return None
    (hint,) = (hint for hint in hints if hint is not type(None))
    return typed(hint, value)


def _choice(allowed: tuple[object, ...], value: object) -> object:
    for choice in allowed:
        if type(value) is type(choice) and value == choice:
            return choice
    raise SettingError(f"must be one of {', '.join(map(str, allowed))}, got {shown(value)}")


def _items(hint: object, value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise SettingError(f"must be a list, got {shown(value)}")
    if len(value) > LONGEST_LIST:
        raise SettingError(f"may have at most {LONGEST_LIST} entries, got {len(value)}")
    return tuple(typed(hint, item) for item in value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(f"must be true or false, got {shown(value)}")
    return value


def _int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SettingError(f"must be a whole number, got {shown(value)}")
    if abs(value) > LARGEST_INT:
        raise SettingError(f"must lie in +-{LARGEST_INT}, got a larger number")
    return value


def _float(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SettingError(f"must be a number such as 0.5 or 1.0e-3, got {shown(value)}")
    if isinstance(value, int):
        return float(_int(value))
    if not math.isfinite(value):
        raise SettingError(f"must be finite, got {value}")
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise SettingError(f"must be a text, got {shown(value)}")
    if len(value) > LONGEST_TEXT or "\0" in value:
        raise SettingError(f"must be at most {LONGEST_TEXT} characters without null characters")
    return value


def _path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_str(value))


_SCALARS = {bool: _bool, int: _int, float: _float, str: _str, Path: _path}
