"""What a checkpoint, a run or a legacy checkpoint holds, as text for people."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from launch.config import ConfigError
from launch.control.checkpoint import (
    COUNTERS,
    LATEST,
    MANIFEST,
    METADATA,
    CheckpointError,
    verify,
)
from launch.control.legacy_steps import read_legacy
from launch.control.metadata import read_metadata
from launch.control.remote_store import RemoteStore
from launch.control.resume import CONFIG_FILE, find_elsewhere
from launch.control.store_driver import StoreError
from launch.control.stored_settings import read_settings_file

DEEPEST = 20  # levels of a file that are shown


def describe(path: Path) -> str:
    """Several lines. ValueError if there is nothing of the kind at `path`, or it is damaged."""
    if (
        path.is_file()
        and path.suffix == ".json"
        and path.name not in (MANIFEST, COUNTERS, METADATA)
    ):
        lines = _legacy(path)
    elif (path / MANIFEST).is_file():
        lines = _checkpoint(path)
    elif (path / "checkpoints").is_dir():
        lines = _run(path)
    else:
        raise ValueError(
            f"{path} is neither a checkpoint (a folder with {MANIFEST}), nor a run (a folder with "
            "checkpoints/), nor the .json file of a legacy checkpoint"
        )
    return "\n".join(lines) + "\n"


def describe_uri(uri: str) -> str:
    """The same of a run's or a checkpoint's URI; every file is fetched once, to be checked.

    ValueError if there is nothing, or the store can't be used.
    """
    source = find_elsewhere(uri, "inspect")
    if source is None:
        raise ValueError(f"{uri} holds no checkpoint")
    lines = [f"{len(source.names)} checkpoints in {source.store.uri}"]
    for name in source.names:
        lines.append(_fetched(source.store, name))
    return "\n".join(lines) + "\n"


def _fetched(store: RemoteStore, name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, *lines = _checkpoint(store.fetch(name, Path(folder)))
        except (CheckpointError, StoreError) as error:
            return f"{store.uri_of(name)}\n  NOT USABLE: {error}"
    return "\n".join([store.uri_of(name), *lines])


def _checkpoint(path: Path) -> Iterator[str]:
    counters = verify(path)
    sizes: dict[str, int] = {}
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        part = file.relative_to(path).parts[0]
        sizes[part] = sizes.get(part, 0) + file.stat().st_size
    yield f"checkpoint {path}"
    yield f"  {len(files)} files, {sum(sizes.values()) / 1e6:,.1f} MB, all as their checksums say"
    for part, size in sorted(sizes.items()):
        yield f"    {part}: {size / 1e6:,.2f} MB"
    yield from _metadata(path)
    yield from _nested(counters, "  ")


def _metadata(path: Path) -> Iterator[str]:
    """What a checkpoint says of itself; its settings are in the file, too many to be read here."""
    if not (path / METADATA).is_file():
        yield f"  no {METADATA}: made before checkpoints held their settings"
        return
    known = read_metadata(path)
    yield f"  environment {_printable(known.env_id)}, seed {known.settings.config.seed}"
    saved_at = _printable(known.saved_at)
    yield f"  {known.env_steps:,} env steps, {known.updates:,} updates, saved {saved_at}"
    yield f"  settings {_printable(known.config_hash[:16])} (whole in {METADATA})"
    yield f"  made with {_printable(', '.join(f'{k} {v}' for k, v in known.versions.items()))}"


def _run(path: Path) -> Iterator[str]:
    yield f"run {path}"
    config = path / CONFIG_FILE
    if config.is_file():
        try:
            settings = read_settings_file(config).config
            yield f"  environment {_printable(settings.env.id)}, seed {settings.seed}"
        except ConfigError as error:
            yield f"  NOT USABLE: {error}"
    folder = path / "checkpoints"
    pointer = folder / LATEST
    newest = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    yield f"  {len(names)} checkpoints"
    for name in names:
        try:
            state = f"saved because: {_printable(str(verify(folder / name).get('reason')))}"
        except CheckpointError as error:
            state = f"NOT USABLE: {error}"
        yield f"    {name}{' (latest)' if name == newest else ''}: {state}"


def _legacy(path: Path) -> Iterator[str]:
    weights = path.with_suffix(".pt")
    beside = f"{weights.stat().st_size / 1e6:,.1f} MB" if weights.is_file() else "missing"
    yield f"legacy checkpoint {path}; {weights.name}: {beside}"
    yield from _nested(read_legacy(path), "  ")


def _nested(content: Mapping[str, object], indent: str) -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, dict) and len(indent) <= 2 * DEEPEST:
            yield f"{indent}{_printable(name)}:"
            yield from _nested(value, indent + "  ")
        else:
            shown = "..." if isinstance(value, dict) else _printable(str(value))
            yield f"{indent}{_printable(name)}: {shown}"


def _printable(text: str) -> str:
    """Nothing in a file may speak to the terminal."""
    return text if text.isprintable() else repr(text)
