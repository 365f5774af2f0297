"""Replay shards of a checkpoint, opened without the run that they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launch.config import Config
from launch.control.checkpoint import CheckpointError, read_json
from replay_service import GameSpec, Replay
from replay_service.snapshot import STATE_FILE


def load_replay(config: Config, snapshot: Path) -> Replay:
    """The shard in the folder `snapshot`, in this process's memory.

    config: of the run that saved it

    Raises ValueError or CheckpointError naming the file that can't be used.
    """
    spec = read_json(snapshot / STATE_FILE).get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("obs_shape"), list):
        raise CheckpointError(f"{snapshot / STATE_FILE} does not say what its game is like")
    try:
        game = GameSpec(**{**spec, "obs_shape": tuple(spec["obs_shape"])})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{snapshot / STATE_FILE}: spec is no game: {error}") from error
    on_host = replace(config.replay.of_one_shard, device="cpu")
    replay = Replay(on_host, config.targets, game, seed=0)
    replay.load(snapshot)
    return replay
