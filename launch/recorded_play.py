"""What a run's replay holds of states with words, and what search or play answered there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from launch.config import ConfigError
from launch.control.chosen_checkpoint import REPLAY_FOLDER, find_checkpoint
from launch.control.resume import stored_settings
from launch.control.saved_replay import load_replay
from replay_service.snapshot import STATE_FILE
from replay_service.targets import TextBatch


def recorded_play(
    path: Path,
    answers: Literal["visits", "actions"],
    told: Callable[[int, int], None] = lambda n_read, n_shards: None,
) -> TextBatch:
    """Every trainable step with a prompt in the replay of a checkpoint.

    path: a run, of which the newest usable checkpoint is taken, a checkpoint, or its replay folder
    answers: the search's visit shares, or the actions that were played
    told: after each shard, how many are read and how many there are

    Raises ConfigError naming the path and what is wrong with it.
    """
    folder = find_checkpoint(path, "--from ")
    config = stored_settings(folder).config
    parts = []
    try:
        states = sorted((folder / REPLAY_FOLDER).rglob(STATE_FILE))
        for n_read, state in enumerate(states, 1):
            found = load_replay(config, state.parent).text_sampler.everything()
            if found is not None:
                parts.append(found)
            told(n_read, len(states))
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


def _joined(parts: list[TextBatch]) -> TextBatch:
    return TextBatch(
        tuple(prompt for part in parts for prompt in part.prompt),
        tuple(options for part in parts for options in part.options),
        torch.cat([part.policy for part in parts]),
        torch.cat([part.action for part in parts]),
    )
