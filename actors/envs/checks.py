"""Checks of settings; the messages name the field, its value and what is allowed."""

from __future__ import annotations


def check_choice(field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        names = ", ".join(str(choice) for choice in allowed)
        raise ValueError(f"{field} must be one of {names}; got {value!r}")


def check_range(field: str, value: int, low: int, high: int) -> None:
    """Raises ValueError unless `value` is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{field} must be a whole number from {low} to {high}, got {value!r}")
