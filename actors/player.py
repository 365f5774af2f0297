"""What every process that plays is made of: games, world model, planner, prior client."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from actors.envs.config import EnvConfig
from actors.envs.game import Game, make_game
from actors.prior.client import PriorClient, PriorTransport
from actors.prior.config import PriorConfig
from actors.search import Planner, SearchClient, SearchConfig, SearchSeat
from actors.search.service import make_search_model
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
    model: WorldModel | None  # none where a service searches
    planner: Planner | SearchClient
    prior: PriorClient | None
    made_s: tuple[float, ...] = ()  # seconds to make each of the games

    def pull_weights(self, source: WeightSource, version: int) -> int:
        """Takes over newer weights than `version`, if any; returns the version now held.

        Where a service searches, it pulls weights itself, and says with which it searched.
        """
        if self.model is None:
            return version
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
    seat: SearchSeat | None = None,
) -> Player:
    """Builds everything from `config`; all seeds are drawn from `rng`.

    seat: this process's place at a search service, with `search.mode served`
    """
    planner_seed, prior_seed, *game_seeds = rng.integers(0, 2**31 - 1, size=n_games + 2)
    games, made_s = [], []
    for seed in game_seeds:
        began = time.perf_counter()
        games.append(make_game(config.env, int(seed)))
        made_s.append(time.perf_counter() - began)
    spec = games[0].spec
    model: WorldModel | None = None
    planner: Planner | SearchClient
    if seat is not None:
        planner = SearchClient(seat, config.search, config.model, spec, n_envs=n_games)
    else:
        model = make_search_model(config.model, spec, config.search, config.device)
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
    return Player(games, model, planner, prior, tuple(made_s))
