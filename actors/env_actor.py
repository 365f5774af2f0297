"""The process shell of acting."""

from __future__ import annotations

import os

import torch

from actors.acting import ActingConfig, ActingLoop, ActorIdentity
from actors.collect_report import CollectReport
from actors.live_view import ViewWish
from actors.play_settings import PlaySettings
from actors.player import PlayerConfig, make_player
from actors.prior.client import PriorTransport
from actors.search import SearchSeat
from learner.weights import WeightSource
from replay_service import Segment, TargetConfig


class EnvActor:
    """One env actor; owns nothing that can't be lost. Called by the controller, one call a time."""

    def __init__(
        self,
        *,
        player: PlayerConfig,
        acting: ActingConfig,
        targets: TargetConfig,
        identity: ActorIdentity,
        weight_source: WeightSource,
        prior_transport: PriorTransport | None,
        seat: SearchSeat | None,
        keeps_advantages: bool = False,
    ) -> None:
        torch.set_num_threads(1)
        self._loop = ActingLoop(
            player=make_player(
                player,
                n_games=acting.envs_per_actor,
                rng=identity.generator(1),
                prior_transport=prior_transport,
                seat=seat,
            ),
            weight_source=weight_source,
            config=acting,
            targets=targets,
            identity=identity,
            keeps_advantages=keeps_advantages,
        )

    def collect(
        self,
        n_steps: int,
        env_steps_so_far: int,
        wish: ViewWish | None = None,
        play: PlaySettings | None = None,
    ) -> tuple[CollectReport, list[Segment]]:
        """See ActingLoop.collect; the segments travel as a second object that is only forwarded."""
        return self._loop.collect(n_steps, env_steps_so_far, wish, play)

    def ping(self) -> int:
        """The process id; an answer means the constructor has finished."""
        return os.getpid()

    def close(self) -> None:
        self._loop.close()
