"""What `counters.json` of a checkpoint must hold before the controller counts on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from launch.control.adaptive import AdaptiveState
from launch.control.checkpoint import CheckpointError
from launch.control.shards import Account
from launch.setting_types import LARGEST_INT, shown

Counters = Mapping[str, Any]
ACCOUNT = {field.name for field in fields(Account)}
MOST_SHARDS = 10_000
COUNTED = {
    "progress": ("env_steps", "episodes", "updates", "evaluations"),
    "limiter": ("inserted", "sampled"),
}


def checked_counters(counters: Mapping[str, object], path: Path) -> Counters:
    """`counters` of the file `path`, if progress, limiter and incarnations are there and in range.

    Raises CheckpointError naming the counter that can't be one.
    """
    for part, names in COUNTED.items():
        content = _part(counters, part, path)
        for name in names:
            _check_count(content.get(name), f"{part}.{name}", path)
    progress, limiter = counters["progress"], counters["limiter"]
    for reason, n_episodes in _part(progress, "end_reasons", path).items():
        _check_count(n_episodes, f"progress.end_reasons.{reason[:50]}", path)
    if "adaptive" in progress:  # older checkpoints have none
        try:
            AdaptiveState.from_json(progress["adaptive"])
        except ValueError as error:
            raise CheckpointError(f"{path}: progress.{error}; use another checkpoint") from error
    if progress.get("best_return") is not None:
        _check_number(progress["best_return"], "progress.best_return", path)
    _check_number(limiter.get("samples_per_insert"), "limiter.samples_per_insert", path)
    if counters.get("replay") is not None:  # older checkpoints have none
        _check_shards(_part(counters, "replay", path), path)
    for index, count in _part(counters, "incarnations", path).items():
        if not (index.isascii() and index.isdigit() and len(index) < 10):
            raise _damaged(path, f"incarnations.{index[:50]}", "be named by a number", index)
        _check_count(count, f"incarnations.{index}", path, least=-1)
    return counters


def _check_shards(replay: Mapping[str, object], path: Path) -> None:
    accounts = replay.get("accounts")
    if not isinstance(accounts, list) or not 0 < len(accounts) <= MOST_SHARDS:
        raise _damaged(path, "replay.accounts", f"list 1 to {MOST_SHARDS} shards", accounts)
    for account in accounts:
        if (
            not isinstance(account, Mapping)
            or account.keys() != ACCOUNT
            or not isinstance(account["is_serving"], bool)
        ):
            raise _damaged(path, "replay.accounts", f"hold {', '.join(sorted(ACCOUNT))}", account)
        for name in ACCOUNT - {"is_serving"}:
            _check_count(account[name], f"replay.accounts.{name}", path)
    for name, value in _part(replay, "carried", path).items():
        _check_number(value, f"replay.carried.{name[:50]}", path)


def _part(counters: Mapping[str, object], name: str, path: Path) -> Mapping[str, object]:
    content = counters.get(name)
    if not isinstance(content, Mapping):
        raise _damaged(path, name, "hold counters", content)
    return content


def _check_count(value: object, name: str, path: Path, *, least: int = 0) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= LARGEST_INT:
        raise _damaged(path, name, f"be a whole number of at least {least}", value)


def _check_number(value: object, name: str, path: Path) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -1e300 < value < 1e300:
        raise _damaged(path, name, "be a finite number", value)


def _damaged(path: Path, name: str, rule: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name} must {rule}, got {shown(value)}; use another checkpoint"
    )
