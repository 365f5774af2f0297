"""What a run's replay holds of states with words, and what search or play answered there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from launch.config import ConfigError
from launch.control.checkpoint import MANIFEST, CheckpointError, CheckpointStore, verify
from launch.control.resume import stored_settings
from launch.control.run_search import CHECKPOINTS_FOLDER
from launch.control.saved_replay import load_replay
from replay_service.snapshot import STATE_FILE
from replay_service.targets import TextBatch

REPLAY_FOLDER = "replay"  # in a checkpoint


def recorded_play(path: Path, answers: Literal["visits", "actions"]) -> TextBatch:
    """Every trainable step with a prompt in the replay of a checkpoint.

    path: a run, of which the newest usable checkpoint is taken, a checkpoint, or its replay folder
    answers: the search's visit shares, or the actions that were played

    Raises ConfigError naming the path and what is wrong with it.
    """
    folder = _checkpoint(path)
    config = stored_settings(folder).config
    parts = []
    try:
        for state in sorted((folder / REPLAY_FOLDER).rglob(STATE_FILE)):
            found = load_replay(config, state.parent).text_sampler.everything()
            if found is not None:
                parts.append(found)
    except ValueError as error:
        raise ConfigError(f"--from {path}: {error}") from error
    if not parts:
        asked = "was played with prior.enabled=false" if not config.prior.enabled else "has none"
        raise ConfigError(
            f"--from {path}: no step in its replay has a prompt: the run {asked}; record one with "
            "a language model in a game that has words"
        )
    batch = _joined(parts)
    if answers == "visits":
        return batch
    policy = torch.zeros_like(batch.policy)
    policy[torch.arange(len(batch.action)), batch.action] = 1.0
    return TextBatch(batch.prompt, batch.options, policy, batch.action)


def _checkpoint(path: Path) -> Path:
    if path.name == REPLAY_FOLDER and (path.parent / MANIFEST).is_file():
        path = path.parent
    if (path / MANIFEST).is_file():
        try:
            verify(path)
        except CheckpointError as error:
            raise ConfigError(f"--from {path}: {error}") from error
        return path
    newest = CheckpointStore(path / CHECKPOINTS_FOLDER, keep=1).latest()
    if newest is None:
        raise ConfigError(
            f"--from {path} is neither a run with a usable checkpoint nor a checkpoint; give a "
            "folder such as runs/textworld"
        )
    return newest


def _joined(parts: list[TextBatch]) -> TextBatch:
    return TextBatch(
        tuple(prompt for part in parts for prompt in part.prompt),
        tuple(options for part in parts for options in part.options),
        torch.cat([part.policy for part in parts]),
        torch.cat([part.action for part in parts]),
    )
