"""Checkpoint folders: written under a temporary name, verified, fsynced, renamed, then pointed at.

A checkpoint holds what each child saved plus `counters.json` (limiter, versions, counters) and
`manifest.json` (size and SHA-256 of every file). A kill at any moment leaves the previous one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
COUNTERS = "counters.json"
LATEST = "LATEST"


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says which file and what to do."""


class CheckpointStore:
    """The `checkpoints/` folder of one run. Used by the controller only."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def begin(self, updates: int, env_steps: int) -> Path:
        """A new empty temporary folder for the children to write into."""
        folder = self._folder / f".tmp-step-{env_steps:010d}-update-{updates:08d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, counters: Mapping[str, object], *, reason: str) -> Path:
        """Seals `folder`: counters, manifest, fsync, rename, LATEST; removes surplus old ones."""
        _write_json(folder / COUNTERS, {"format": FORMAT_VERSION, "reason": reason, **counters})
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        inventory = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
        _write_json(folder / MANIFEST, {"format": FORMAT_VERSION, "files": inventory})
        for path in files:
            _fsync(path)
        target = self._folder / folder.name.removeprefix(".tmp-")
        if target.exists():  # the same counters were saved before: nothing new to keep
            shutil.rmtree(target)
        os.replace(folder, target)
        _fsync(self._folder)
        self._point_to(target.name)
        self._remove_surplus(target)
        return target

    def latest(self) -> Path | None:
        """The newest checkpoint that passes `verify`; broken ones are skipped, newest first."""
        names = self._names()
        pointer = self._folder / LATEST
        if pointer.is_file():
            first = pointer.read_text().strip()
            names = [first] + [name for name in names if name != first]
        for name in names:
            try:
                verify(self._folder / name)
            except CheckpointError:
                continue
            return self._folder / name
        return None

    def _names(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        found = [p.name for p in self._folder.iterdir() if p.is_dir() and p.name[0] != "."]
        return sorted(found, reverse=True)

    def _point_to(self, name: str) -> None:
        temporary = self._folder / f".{LATEST}"
        temporary.write_text(name + "\n")
        _fsync(temporary)
        os.replace(temporary, self._folder / LATEST)
        _fsync(self._folder)

    def _remove_surplus(self, newest: Path) -> None:
        for name in self._names()[self._keep :]:
            if name != newest.name:
                shutil.rmtree(self._folder / name, ignore_errors=True)


def verify(folder: Path) -> dict[str, object]:
    """Checks inventory, sizes and checksums; returns the counters.

    Raises CheckpointError naming the first file that is missing or differs.
    """
    manifest = _read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or COUNTERS not in files:
        raise CheckpointError(f"{folder / MANIFEST} lists no files; use another checkpoint")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"checkpoint file {path} is missing; use another checkpoint")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise CheckpointError(
                f"checkpoint file {path} differs from its manifest (truncated or damaged); "
                "use another checkpoint"
            )
    return _read_json(folder / COUNTERS)


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}; use another checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no object; use another checkpoint")
    return content


def _write_json(path: Path, content: Mapping[str, object]) -> None:
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
