"""What every process that plays is made of: games, world model, planner, prior client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from actors.envs.config import EnvConfig
from actors.envs.game import Game, make_game
from actors.prior.client import PriorClient, PriorTransport
from actors.prior.config import PriorConfig
from actors.search import Planner, SearchConfig
from learner.weights import WeightSource, load_weights
from learner.world_model import WorldModel, WorldModelConfig


@dataclass(frozen=True, slots=True)
class PlayerConfig:
    """The settings that env actors and the evaluator share."""

    env: EnvConfig
    search: SearchConfig
    prior: PriorConfig
    model: WorldModelConfig
    discount: float
    device: str


@dataclass(frozen=True, slots=True)
class Player:
    """Owned by one process, used from one thread."""

    games: list[Game]
    model: WorldModel
    planner: Planner
    prior: PriorClient | None

    def pull_weights(self, source: WeightSource, version: int) -> int:
        """Takes over newer weights than `version`, if any; returns the version now played with."""
        weights = source.pull_if_newer(version)
        if weights is None:
            return version
        load_weights(self.model, weights)
        self.planner.weights_changed(weights.version)
        return weights.version


def make_player(
    config: PlayerConfig,
    *,
    n_games: int,
    rng: np.random.Generator,
    prior_transport: PriorTransport | None,
) -> Player:
    """Builds everything from `config`; all seeds are drawn from `rng`."""
    planner_seed, prior_seed, *game_seeds = rng.integers(0, 2**31 - 1, size=n_games + 2)
    games = [make_game(config.env, int(seed)) for seed in game_seeds]
    model = WorldModel(config.model, games[0].spec).to(config.device).eval()
    if config.search.bf16 and torch.device(config.device).type == "cuda":
        model.store_parameters_in(torch.bfloat16)
    planner = Planner(
        model,
        config.search,
        n_envs=n_games,
        discount=config.discount,
        seed=int(planner_seed),
        device=config.device,
        injection=config.prior.injection,
    )
    prior = None
    if prior_transport is not None:
        prior = PriorClient(config.prior, prior_transport, seed=int(prior_seed))
    return Player(games, model, planner, prior)
