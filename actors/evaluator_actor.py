"""The process shell of evaluation."""

from __future__ import annotations

import os

import numpy as np
import torch

from actors.evaluation import EvaluationConfig, EvaluationLoop, EvaluationReport
from actors.player import PlayerConfig, make_player
from actors.prior.client import PriorTransport
from actors.search import SearchSeat
from learner.weights import WeightSource

MAX_GAMES = 10  # more episodes are played one batch after another
SEED_STREAM = 1_000_003  # evaluation never replays the starts that acting trained on


def n_evaluation_games(config: EvaluationConfig) -> int:
    """Games that an evaluator plays side by side."""
    return min(MAX_GAMES, max(config.n_episodes, config.final_episodes))


class EvaluatorActor:
    """Plays greedy episodes whenever the controller asks; owns nothing that can't be lost."""

    def __init__(
        self,
        *,
        player: PlayerConfig,
        evaluation: EvaluationConfig,
        seed: int,
        weight_source: WeightSource,
        prior_transport: PriorTransport | None,
        seat: SearchSeat | None,
    ) -> None:
        torch.set_num_threads(1)
        self._loop = EvaluationLoop(
            player=make_player(
                player,
                n_games=n_evaluation_games(evaluation),
                rng=np.random.default_rng([seed, SEED_STREAM]),
                prior_transport=prior_transport,
                seat=seat,
            ),
            weight_source=weight_source,
            config=evaluation,
            rng=np.random.default_rng([seed, SEED_STREAM, 1]),
        )

    def evaluate(self, n_episodes: int, video: bool) -> EvaluationReport:
        return self._loop.evaluate(n_episodes, video)

    def ping(self) -> int:
        return os.getpid()
