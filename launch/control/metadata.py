"""`metadata.json` of a checkpoint: what it is and what it was made with, readable without the rest.

It lies in the sealed folder, so its checksum is in the manifest, and holds the whole configuration:
a checkpoint can be gone on from when nothing else of its run is left.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata as packages
from pathlib import Path

from launch.config import Config, ConfigError, to_dict
from launch.control.checkpoint import METADATA, CheckpointError, read_json
from launch.control.stored_settings import (
    LARGEST_FILE_BYTES,
    StoredSettings,
    binding_hash,
    parse_settings,
)
from launch.setting_types import SettingError, shown, typed

LIBRARIES = ("torch", "numpy", "numba", "safetensors", "gymnasium", "ray", "transformers", "vllm")


@dataclass(frozen=True, slots=True)
class Metadata:
    """Checked content of a metadata.json."""

    env_id: str
    env_steps: int
    updates: int
    reason: str
    saved_at: str
    config_hash: str
    versions: Mapping[str, str]
    settings: StoredSettings


def describe(config: Config, counters: Mapping[str, object], reason: str) -> dict[str, object]:
    """What `metadata.json` says of a checkpoint that holds `counters`."""
    progress = counters["progress"]
    assert isinstance(progress, Mapping)
    return {
        "env_id": config.env.id,
        "env_steps": progress["env_steps"],
        "updates": progress["updates"],
        "reason": reason,
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_hash": binding_hash(config),
        "versions": library_versions(),
        "config": to_dict(config),
    }


@cache
def library_versions() -> dict[str, str]:
    """Of Python and of those of LIBRARIES that are installed."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return versions


def read_metadata(folder: Path) -> Metadata:
    """Of the checkpoint `folder`. Raises CheckpointError naming the field that is wrong."""
    path = folder / METADATA
    content = read_json(path, largest_bytes=LARGEST_FILE_BYTES)
    texts = {name: _field(path, content, name, str) for name in _TEXTS}
    counts = {name: _field(path, content, name, int) for name in ("env_steps", "updates")}
    for name, value in counts.items():
        if value < 0:
            raise CheckpointError(f"{path}: {name} must not be negative, got {value}")
    try:
        settings = parse_settings(content.get("config"), where=f"config in {path}")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return Metadata(**texts, **counts, versions=_versions(path, content), settings=settings)


_TEXTS = ("env_id", "reason", "saved_at", "config_hash")


def _field(path: Path, content: Mapping[str, object], name: str, kind: type) -> object:
    if name not in content:
        raise CheckpointError(f"{path}: {name} is missing; use another checkpoint")
    try:
        return typed(kind, content[name])
    except SettingError as error:
        raise CheckpointError(f"{path}: {name} {error}") from error


def _versions(path: Path, content: Mapping[str, object]) -> dict[str, str]:
    found = content.get("versions")
    if not isinstance(found, Mapping) or not all(isinstance(v, str) for v in found.values()):
        raise CheckpointError(f"{path}: versions must hold texts by library, got {shown(found)}")
    return {name[:100]: version[:100] for name, version in found.items()}
