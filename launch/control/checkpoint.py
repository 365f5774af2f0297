"""Checkpoint folders: written under a temporary name, fsynced, renamed, then pointed at.

A checkpoint holds what each child saved plus `counters.json` (limiter, versions, counters),
`metadata.json` (what it is, for people and for resuming) and `manifest.json` (size and SHA-256 of
every file). Files may be hard links to those of the checkpoint
before: they are written and summed up once, and vanish with the last that has them. A kill at any
moment, or a disk that fails or fills up, leaves the checkpoints before it as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from itertools import count
from pathlib import Path

from launch.control.manifest import (
    FORMAT_VERSION,
    CheckpointError,
    FileEntry,
    checked_inventory,
)
from replay_service.frame_blocks import Stamp, stamp

MANIFEST = "manifest.json"
COUNTERS = "counters.json"
METADATA = "metadata.json"
LATEST = "LATEST"
BEST = "BEST"
LARGEST_MANIFEST_BYTES = 50_000_000  # some 300,000 files
BACKUP_SUFFIX = ".bak"  # of a checkpoint that was brought up to date, as it was before
_TEMPORARY = ".tmp-"

log = logging.getLogger(__name__)


class CheckpointStore:
    """The `checkpoints/` folder of one run. Used by the controller only."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        describe: Callable[[Mapping[str, object], str], Mapping[str, object]] | None = None,
    ) -> None:
        """keep: the newest so many stay, and beside them the one of the best evaluation.

        describe: what `metadata.json` says of a checkpoint with given counters and reason.
        """
        self._folder = folder
        self._keep = keep
        self._describe = describe
        # Names that must stay for now although they are surplus; somebody may be reading them.
        self.held: Callable[[], Collection[str]] = tuple

    def begin(self, updates: int, env_steps: int) -> Path:
        """A new empty temporary folder for the children to write into."""
        for left_behind in self._folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        folder = self._folder / f"{_TEMPORARY}step-{env_steps:010d}-update-{updates:08d}"
        folder.mkdir(parents=True)
        return folder

    def commit(
        self, folder: Path, counters: Mapping[str, object], *, reason: str, is_best: bool = False
    ) -> Path:
        """Seals `folder`: counters, manifest, fsync, rename, LATEST; removes surplus old ones.

        is_best: of all evaluations so far none was better. OSError leaves older ones untouched.
        """
        write_json(folder / COUNTERS, {"format": FORMAT_VERSION, "reason": reason, **counters})
        if self._describe is not None:
            write_json(folder / METADATA, self._describe(counters, reason))
        write_manifest(folder, _known_checksums(self.newest()))
        target = self._unused(folder.name.removeprefix(_TEMPORARY))
        self._publish(folder, target)
        if is_best:
            self._point(BEST, target.name)
        self._remove_surplus()
        return target

    def adopt(self, folder: Path) -> Path:
        """Makes the verified checkpoint `folder`, on the same file system, the newest of these."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in [*folder.rglob("*"), folder]:
            _fsync(path)
        target = self._unused(folder.name)
        self._publish(folder, target)
        return target

    def newest(self) -> Path | None:
        """The checkpoint committed last, unverified."""
        name = self._pointed(LATEST)
        return self._folder / name if name in self.names() else None

    def best(self) -> Path | None:
        """The one that followed the best evaluation, unverified."""
        name = self._pointed(BEST)
        return self._folder / name if name in self.names() else None

    def latest(self) -> Path | None:
        """The newest checkpoint that passes `verify`; for each broken one a warning is logged."""
        names, newest = self.names(), self.newest()
        if newest is not None:
            names = [newest.name] + [name for name in names if name != newest.name]
        for name in names:
            try:
                verify(self._folder / name)
            except CheckpointError as error:
                log.warning("[train] skipping checkpoint %s: %s", name, error)
                continue
            return self._folder / name
        return None

    def names(self) -> list[str]:
        """Of all finished checkpoints, newest first, broken ones included."""
        if not self._folder.is_dir():
            return []
        found = [p.name for p in self._folder.iterdir() if p.is_dir() and p.name[0] != "."]
        return sorted((n for n in found if not n.endswith(BACKUP_SUFFIX)), reverse=True)

    def _publish(self, folder: Path, target: Path) -> None:
        os.replace(folder, target)
        _fsync(self._folder)
        self._point(LATEST, target.name)

    def _unused(self, name: str) -> Path:
        """`name`, or where the same counters were saved before, a name that sorts after it."""
        target = self._folder / name
        again = count(1)
        while target.exists():
            target = self._folder / f"{name}-again-{next(again):03d}"
        return target

    def _pointed(self, pointer: str) -> str:
        """Name that a pointer file holds, whatever that may be; "" where there is none."""
        try:
            return (self._folder / pointer).read_text(errors="replace").strip()
        except OSError:
            return ""

    def _point(self, pointer: str, name: str) -> None:
        temporary = self._folder / f".{pointer}"
        temporary.write_text(name + "\n")
        _fsync(temporary)
        os.replace(temporary, self._folder / pointer)
        _fsync(self._folder)

    def _remove_surplus(self) -> None:
        kept = (self._pointed(LATEST), self._pointed(BEST), *self.held())
        for name in self.names()[self._keep :]:
            if name not in kept:
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Out of sight first, so that a kill half-way leaves no half checkpoint to be found."""
        hidden = self._folder / f"{_TEMPORARY}{name}"
        os.replace(self._folder / name, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def write_manifest(folder: Path, known: Mapping[Stamp, str]) -> None:
    """Lists all files of `folder`, and syncs them to disk; checksums of `known` ones are taken."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    inventory = {
        str(path.relative_to(folder)): {
            "bytes": path.stat().st_size,
            "sha256": known.get(stamp(path)) or _sha256(path),
        }
        for path in files
    }
    write_json(folder / MANIFEST, {"format": FORMAT_VERSION, "files": inventory})
    for path in [*files, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _fsync(path)


def verify(folder: Path) -> dict[str, object]:
    """Checks inventory, sizes and checksums; returns the counters.

    Raises CheckpointError naming the first file that is missing or differs.
    """
    for name, entry in inventory_of(folder).items():
        path = folder / name
        if not path.is_file() or _is_linked(folder, name):
            raise CheckpointError(f"checkpoint file {path} is missing; use another checkpoint")
        if not _is_as_listed(path, entry):
            raise CheckpointError(
                f"checkpoint file {path} differs from its manifest (truncated or damaged); "
                "use another checkpoint"
            )
    return read_json(folder / COUNTERS, largest_bytes=LARGEST_MANIFEST_BYTES)


def inventory_of(folder: Path) -> dict[str, FileEntry]:
    """What the manifest of `folder` lists, checked but for the files. Raises CheckpointError."""
    path = folder / MANIFEST
    content = read_json(path, largest_bytes=LARGEST_MANIFEST_BYTES)
    return checked_inventory(content, str(path), required=COUNTERS)


def _is_linked(folder: Path, name: str) -> bool:
    """By a symbolic link, which could lead anywhere; hard links are files like others."""
    parts = Path(name).parts
    return any(folder.joinpath(*parts[: n + 1]).is_symlink() for n in range(len(parts)))


def _is_as_listed(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.n_bytes and _sha256(path) == entry.sha256
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}; use another checkpoint") from error


def _known_checksums(previous: Path | None) -> dict[Stamp, str]:
    """By file: those of the checkpoint before, which may share files with the new one."""
    if previous is None:
        return {}
    try:
        files = inventory_of(previous)
        return {stamp(previous / name): entry.sha256 for name, entry in files.items()}
    except (CheckpointError, OSError):
        return {}


def read_json(path: Path, *, largest_bytes: int | None = None) -> dict[str, object]:
    """The object in a JSON file. Raises CheckpointError if there is none, or it is too large."""
    try:
        n_bytes = path.stat().st_size
        if largest_bytes is not None and n_bytes > largest_bytes:
            raise CheckpointError(
                f"{path} has {n_bytes:,} bytes, at most {largest_bytes:,} allowed"
            )
        content = json.loads(path.read_text())
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {error}; use another checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no object; use another checkpoint")
    return content


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a JSON file and syncs it to disk."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    _fsync(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
