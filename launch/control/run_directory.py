"""The folder of one run: who may use it, what it goes on from, and what is written at its end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from launch.config import Config, ConfigError, to_dict
from launch.control.checkpoint import CheckpointStore
from launch.control.fetching import FETCHED_FOLDER, fetch
from launch.control.metadata import describe
from launch.control.remote_store import RemoteStore
from launch.control.resume import (
    CONFIG_FILE,
    RUNS_ROOT,
    Elsewhere,
    Resume,
    choose_source,
    is_path,
    would_continue,
)
from launch.control.run_search import CHECKPOINTS_FOLDER, LOCK_FILE
from launch.control.store_claim import claim_store

SUMMARY_FILE = "summary.json"


class RunDirectory:
    """Made or re-opened by the driver before anything is started; holds a lock until closed."""

    def __init__(
        self,
        path: Path,
        config: Config,
        lock: int,
        resume: Resume | None,
        remote: RemoteStore | None,
    ) -> None:
        self.path = path
        self.resume = resume
        self.remote = remote
        self.checkpoints = CheckpointStore(
            path / CHECKPOINTS_FOLDER, config.control.keep_checkpoints, partial(describe, config)
        )
        self._lock = lock

    @property
    def resume_from(self) -> Path | None:
        """The checkpoint gone on from, None at a new start."""
        return None if self.resume is None else self.resume.folder

    @property
    def resumed_at_step(self) -> int | None:
        """Env steps of the checkpoint gone on from, None at a new start."""
        return None if self.resume is None else self.resume.env_steps

    def write_summary(self, summary: dict[str, object]) -> None:
        temporary = self.path / f".{SUMMARY_FILE}"
        temporary.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, self.path / SUMMARY_FILE)

    def close(self) -> None:
        shutil.rmtree(self.path / FETCHED_FOLDER, ignore_errors=True)
        os.close(self._lock)


def open_run(preset: str, config: Config) -> RunDirectory:
    """Chooses, checks and locks the run directory. Nothing is written before every check passed.

    Raises ConfigError when the directory can't be written, is in use, holds a run that must not
    be continued, or was made with settings that differ in more than SAFE_TO_CHANGE.
    """
    path = run_path(preset, config)
    source = choose_source(path, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(
            f"run_dir {path} can't be written: {error.strerror}; choose another with --run-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"run_dir {path} is in use by another run; wait for it or choose another --run-dir"
        ) from error
    try:
        resume = fetch(source, path, config) if isinstance(source, Elsewhere) else source
        remote = claim_store(path, config, resume)
    except ConfigError:
        os.close(lock)
        raise
    temporary = path / f".{CONFIG_FILE}"
    temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    os.replace(temporary, path / CONFIG_FILE)
    (path / SUMMARY_FILE).unlink(missing_ok=True)
    return RunDirectory(path, config, lock, resume, remote)


def run_path(preset: str, config: Config) -> Path:
    """Where the run of these settings lives, or would."""
    return config.run_dir if config.run_dir is not None else _default_path(preset, config)


def is_finished(path: Path) -> bool:
    try:
        return json.loads((path / SUMMARY_FILE).read_text())["finished"] is True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _default_path(preset: str, config: Config) -> Path:
    """runs/<preset>; the first free or unfinished of runs/<preset>-2, -3, ...

    What goes on from a PATH begins a folder of its own: nothing of another run is mixed into.
    """
    for path in _candidates(RUNS_ROOT / preset):
        if not path.exists():
            return path
        if config.resume == "never" or is_path(config.resume) or is_finished(path):
            continue
        if would_continue(path, config):
            return path
    raise AssertionError("unreachable: the candidates never end")


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1
