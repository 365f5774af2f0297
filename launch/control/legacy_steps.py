"""Step counts of checkpoints of the A3C systems before this one, rebuilt from their update counts.

Such a checkpoint is a pair X.pt and X.json. Some of those systems counted no env steps: their JSON
says global_step 0 after any number of updates.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from launch.setting_types import shown

SOURCE_FIELD = "reconstructed_step_source"
SOURCE = "rebuild"
DETAILS_FIELD = "reconstructed_step_details"

Outcome = Literal["rebuilt", "kept", "failed"]


class LegacyError(ValueError):
    """A file that can't be rebuilt; the message names it, the field and what is wrong."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What became of one JSON file. `text` says why, or what was written."""

    path: Path
    outcome: Outcome
    text: str


def legacy_files(path: Path) -> Iterator[Path]:
    """JSON files of legacy checkpoints at or below `path`, in order; others are passed over."""
    for candidate in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        if candidate.with_suffix(".pt").is_file() or not path.is_dir():
            yield candidate


def rebuild_steps(path: Path, *, assumed_rollout_steps: int, dry_run: bool) -> StepReport:
    """Put updates * environments * rollout steps where `path` says global_step 0.

    The file as it was stays beside it as .json.bak; a second call changes nothing. The .pt file is
    read at most, without running anything in it.
    """
    try:
        content = read_legacy(path)
        if SOURCE_FIELD in content:
            return StepReport(path, "kept", f"{SOURCE_FIELD} is {content[SOURCE_FIELD]!r} already")
        saved = _object(content, "save_state", path)
        known = _count(saved, "save_state.global_step", path)
        if known > 0:
            return StepReport(path, "kept", f"global_step is {known:,}")
        n_envs = _count(_object(content, "vector_env", path), "vector_env.num_envs", path)
        n_updates = _count(saved, "save_state.global_update", path) or _updates_in(path)
        if n_updates == 0:
            return StepReport(path, "kept", "it was saved before the first update")
        if n_envs == 0:
            raise LegacyError(f"{path}: vector_env.num_envs is 0; at least 1 is needed")
    except LegacyError as error:
        return StepReport(path, "failed", str(error))
    n_steps = n_updates * n_envs * assumed_rollout_steps
    saved["global_step"] = n_steps
    content[SOURCE_FIELD] = SOURCE
    content[DETAILS_FIELD] = {
        "formula": "global_update * num_envs * rollout_steps",
        "global_update": n_updates,
        "num_envs": n_envs,
        "assumed_rollout_steps": assumed_rollout_steps,
        "rebuilt_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not dry_run:
        _replace_keeping_backup(path, content)
    text = f"global_step 0 -> {n_steps:,} = {n_updates:,} x {n_envs} x {assumed_rollout_steps}"
    return StepReport(path, "rebuilt", text)


def read_legacy(path: Path) -> dict[str, object]:
    """The content of a legacy JSON file. Raises LegacyError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LegacyError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise LegacyError(f"{path} holds no JSON object")
    return content


def _updates_in(path: Path) -> int:
    """global_update of the .pt file beside `path`, for JSON files that lost that as well."""
    weights = path.with_suffix(".pt")
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        # For damaged bytes torch's restricted unpickler raises whatever its stack meets.
        cause = str(error).partition("\n")[0]
        raise LegacyError(
            f"{path}: save_state.global_update is 0, and {weights.name} can't be read for it "
            f"without running code from it: {cause}"
        ) from error
    return _count(content, "global_update", weights) if isinstance(content, dict) else 0


def _object(content: dict[str, object], name: str, path: Path) -> dict[str, object]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise LegacyError(f"{path}: {name} must be an object, got {shown(value)}")
    return value


def _count(content: dict[str, object], name: str, path: Path) -> int:
    """A whole number of at least 0; absent counts as 0. `name` may carry its parent's name."""
    value = content.get(name.rpartition(".")[2], 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise LegacyError(
            f"{path}: {name} must be a whole number of at least 0, got {shown(value)[:100]}"
        )
    return value


def _replace_keeping_backup(path: Path, content: dict[str, object]) -> None:
    backup = path.with_name(f"{path.name}.bak")
    if not backup.exists():
        _put(backup, path.read_bytes())
        shutil.copystat(path, backup)
    _put(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
