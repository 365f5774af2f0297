"""A checkpoint that plays: its settings, its weights, and a player made of them in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from actors.envs.config import EnvConfig
from actors.player import Player, PlayerConfig, make_player
from actors.prior.backend import LocalPriorTransport
from actors.prior.local_engine import LocalPriorEngine
from launch.config import Config, ConfigError
from launch.control.checkpoint import COUNTERS, read_json
from launch.control.chosen_checkpoint import find_checkpoint
from launch.control.counters import checked_counters
from launch.control.resume import stored_settings
from launch.control.run_search import CHECKPOINTS_FOLDER
from launch.control.warm_start import ADAPTERS_FOLDER
from learner.checkpoint import checkpoint_weights
from learner.weights import NO_VERSION, Weights, WeightStore


@dataclass(frozen=True, slots=True)
class SavedAgent:
    """run_dir: of the run that the checkpoint lies in; the checkpoint itself if it lies alone."""

    checkpoint: Path
    run_dir: Path
    config: Config
    weights: Weights
    env_steps: int

    @property
    def has_prior(self) -> bool:
        return self.config.prior.enabled


def load_agent(path: Path) -> SavedAgent:
    """Of a run's newest usable checkpoint, or of a checkpoint.

    Raises ConfigError naming the path and what is wrong with it.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name a run, such as runs/mario-quick")
    folder = find_checkpoint(path)
    in_run = folder.parent.name == CHECKPOINTS_FOLDER
    try:
        counters = checked_counters(read_json(folder / COUNTERS), folder / COUNTERS)
        weights = checkpoint_weights(folder / "learner")
    except ValueError as error:
        raise ConfigError(f"{folder} can't be played: {error}") from error
    return SavedAgent(
        checkpoint=folder,
        run_dir=folder.parent.parent if in_run else folder,
        config=stored_settings(folder).config,
        weights=weights,
        env_steps=int(counters["progress"]["env_steps"]),
    )


def make_saved_player(
    agent: SavedAgent,
    *,
    n_games: int,
    seed: list[int],
    with_prior: bool,
    n_simulations: int | None = None,
    env: EnvConfig | None = None,
) -> Player:
    """Everything that plays, in this process; the language model answers by transformers.

    seed: of all its chance, as numpy's generators take it
    env: in place of the run's own, with the same observations and actions

    Raises ConfigError where a setting can't be used here or the weights do not fit.
    """
    config = agent.config
    n_simulations = n_simulations or config.search.n_simulations
    try:
        search = replace(
            config.search,
            n_simulations=n_simulations,
            leaves_per_call=min(config.search.leaves_per_call, n_simulations),
            mode="local",
            max_roots=0,
        )
        player = make_player(
            PlayerConfig(
                env=env or config.env,
                search=search,
                prior=config.prior,
                model=config.model,
                discount=config.targets.discount,
                device="cuda" if torch.cuda.is_available() else "cpu",
            ),
            n_games=n_games,
            rng=np.random.default_rng(seed),
            prior_transport=_transport(agent) if with_prior else None,
        )
        store = WeightStore()
        store.push(agent.weights)
        player.pull_weights(store, NO_VERSION)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{agent.checkpoint} can't be played: {error}") from error
    return player


def _transport(agent: SavedAgent) -> LocalPriorTransport:
    """To the newest adapter of the run, or to the model as loaded where none was published."""
    adapters = agent.run_dir / ADAPTERS_FOLDER
    return LocalPriorTransport(LocalPriorEngine(agent.config.prior, adapters_dir=adapters))
