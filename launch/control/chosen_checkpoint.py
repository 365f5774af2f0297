"""Which checkpoint a path on the command line means."""

from __future__ import annotations

from pathlib import Path

from launch.config import ConfigError
from launch.control.checkpoint import MANIFEST, CheckpointError, CheckpointStore, verify
from launch.control.run_search import CHECKPOINTS_FOLDER

REPLAY_FOLDER = "replay"  # in a checkpoint


def find_checkpoint(path: Path, option: str = "") -> Path:
    """A verified one.

    path: a run, of which the newest usable checkpoint is taken, a checkpoint, or its replay folder
    option: what the path was given with, for messages

    Raises ConfigError naming the path and what is wrong with it.
    """
    if path.name == REPLAY_FOLDER and (path.parent / MANIFEST).is_file():
        path = path.parent
    if (path / MANIFEST).is_file():
        try:
            verify(path)
        except CheckpointError as error:
            raise ConfigError(f"{option}{path}: {error}") from error
        return path
    newest = CheckpointStore(path / CHECKPOINTS_FOLDER, keep=1).latest()
    if newest is None:
        raise ConfigError(
            f"{option}{path} is neither a run with a usable checkpoint nor a checkpoint; give a "
            "folder such as runs/textworld"
        )
    return newest
