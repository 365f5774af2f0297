"""The process shell of reanalysis."""

from __future__ import annotations

import os

import torch

from actors.player import PlayerConfig
from actors.prior.client import PriorTransport
from actors.reanalysis import ReanalysisConfig, ReanalysisReport, make_reanalyser
from learner.weights import WeightSource
from replay_service import GameSpec, ReanalysisSource


class ReanalyzeActor:
    """Searches segments again when the controller asks; owns nothing that can't be lost."""

    def __init__(
        self,
        *,
        player: PlayerConfig,
        reanalysis: ReanalysisConfig,
        spec: GameSpec,
        unroll_steps: int,
        seed: int,
        prior_transport: PriorTransport | None,
        weight_source: WeightSource,
        source: ReanalysisSource,
    ) -> None:
        """Takes what `make_reanalyser` takes."""
        torch.set_num_threads(1)
        self._reanalyser = make_reanalyser(
            player,
            reanalysis,
            spec,
            unroll_steps=unroll_steps,
            seed=seed,
            prior_transport=prior_transport,
            weight_source=weight_source,
            source=source,
        )

    def refresh(self, n_segments: int, env_steps: int) -> ReanalysisReport:
        """See Reanalyser.refresh."""
        return self._reanalyser.refresh(n_segments, env_steps)

    def ping(self) -> int:
        """The process id; an answer means the constructor has finished."""
        return os.getpid()
