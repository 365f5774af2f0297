"""Brings our own checkpoints of older formats up to date, by the steps that each of them lacks.

What is older is read as it is, too, as long as it can be; an upgrade makes it whole for programs
that come later. The folder as it was stays beside the new one, as .bak.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from launch.control.checkpoint import (
    BACKUP_SUFFIX,
    COUNTERS,
    METADATA,
    CheckpointError,
    read_json,
    verify,
    write_json,
    write_manifest,
)
from launch.control.metadata import describe, read_metadata
from launch.control.run_directory import CONFIG_FILE
from launch.control.saved_replay import load_replay
from launch.control.stored_settings import read_settings_file
from learner.checkpoint import AVERAGE_FILE, MODEL_FILE
from replay_service.snapshot import FORMAT_VERSION as REPLAY_VERSION
from replay_service.snapshot import STATE_FILE

AUDIT_FIELD = "upgraded"  # in metadata.json: when, and by which steps
_WORK = ".tmp-upgrade-"


@dataclass(frozen=True, slots=True)
class UpgradeReport:
    """What became of one checkpoint."""

    path: Path
    outcome: Literal["upgraded", "current", "failed"]
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the format: who lacks it, and how it is made up for.

    apply: works on a copy of the checkpoint; the second folder is its run's
    """

    name: str
    is_due: Callable[[Path], bool]
    apply: Callable[[Path, Path], None]


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoint `path`, or those of the run `path`, oldest first."""
    folder = path / "checkpoints"
    if not folder.is_dir():
        return [path]
    _undo_interrupted(folder)
    return sorted(p.parent for p in folder.glob(f"*/{COUNTERS}") if _is_checkpoint(p.parent))


def upgrade(folder: Path, *, dry_run: bool) -> UpgradeReport:
    """Nothing is changed unless all steps succeed and the new folder passes its checks."""
    try:
        counters = verify(folder)
        due = [step for step in STEPS if step.is_due(folder)]
        names = ", ".join(step.name for step in due)
        if not due:
            return UpgradeReport(folder, "current", "nothing to do")
        if dry_run:
            return UpgradeReport(folder, "upgraded", f"would get {names}")
        backup = folder.with_name(folder.name + BACKUP_SUFFIX)
        if backup.exists():
            raise CheckpointError(f"{backup} is there already; move it away first")
        work = _upgraded_copy(folder, counters, due)
    except (ValueError, OSError) as error:
        return UpgradeReport(folder, "failed", str(error))
    os.replace(folder, backup)
    os.replace(work, folder)
    return UpgradeReport(folder, "upgraded", f"got {names}; as it was: {backup.name}")


def _upgraded_copy(folder: Path, counters: Mapping[str, object], due: list[Step]) -> Path:
    work = folder.with_name(_WORK + folder.name)
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work)  # no links: what is rewritten must not change the old one
    try:
        for step in due:
            step.apply(work, folder.parent.parent)
        audit = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": [step.name for step in due],
        }
        metadata = read_json(work / METADATA)
        write_json(work / METADATA, {**metadata, AUDIT_FIELD: audit})
        write_manifest(work, {})
        if verify(work) != counters:
            raise CheckpointError(f"{folder}: its counters did not survive")
        read_metadata(work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return work


def _undo_interrupted(folder: Path) -> None:
    """An upgrade that was killed between its two renames left only the .bak."""
    for backup in folder.glob(f"*{BACKUP_SUFFIX}"):
        original = backup.with_name(backup.name.removesuffix(BACKUP_SUFFIX))
        if not original.exists():
            os.replace(backup, original)


def _is_checkpoint(folder: Path) -> bool:
    return not folder.name.startswith(".") and not folder.name.endswith(BACKUP_SUFFIX)


def _lacks_metadata(folder: Path) -> bool:
    return not (folder / METADATA).is_file()


def _add_metadata(folder: Path, run_dir: Path) -> None:
    """From the run's config.yaml; without it nobody knows what the checkpoint was made with."""
    settings = run_dir / CONFIG_FILE
    if not settings.is_file():
        raise CheckpointError(
            f"{folder} has no {METADATA}, and {settings} is missing; put the run's {CONFIG_FILE} "
            "there"
        )
    counters = read_json(folder / COUNTERS)
    config = read_settings_file(settings).config
    write_json(folder / METADATA, describe(config, counters, str(counters.get("reason", ""))))


def _lacks_average(folder: Path) -> bool:
    learner = folder / "learner"
    return (learner / MODEL_FILE).is_file() and not (learner / AVERAGE_FILE).is_file()


def _add_average(folder: Path, run_dir: Path) -> None:
    """Averaging begins anew from the weights as they are."""
    shutil.copyfile(folder / "learner" / MODEL_FILE, folder / "learner" / AVERAGE_FILE)


def _old_snapshots(folder: Path) -> list[Path]:
    """Folders of replay shards in an older format. CheckpointError for a newer one."""
    old = []
    for path in sorted((folder / "replay").rglob(STATE_FILE)):
        version = read_json(path).get("format_version")
        if not isinstance(version, int) or version > REPLAY_VERSION:
            raise CheckpointError(
                f"{path} has format_version {str(version)[:20]}, this program writes "
                f"{REPLAY_VERSION}; use the program that wrote it"
            )
        if version < REPLAY_VERSION:
            old.append(path.parent)
    return old


def _renew_snapshots(folder: Path, run_dir: Path) -> None:
    config = read_metadata(folder).settings.config
    for snapshot in _old_snapshots(folder):
        replay = load_replay(config, snapshot)
        shutil.rmtree(snapshot)
        replay.save(snapshot)


STEPS = (
    Step("metadata", _lacks_metadata, _add_metadata),
    Step("averaged weights", _lacks_average, _add_average),
    Step(
        f"replay format {REPLAY_VERSION}",
        lambda folder: bool(_old_snapshots(folder)),
        _renew_snapshots,
    ),
)
