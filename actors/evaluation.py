"""Greedy episodes from seeded starts, without exploration, and the video of one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.episodes import Episode, EpisodePlayer, Mode, Moment, PlayStyle, Start, Watch
from actors.evaluation_rows import OWN_WAY, Row, rows_of
from actors.player import Player
from actors.video_file import VideoFile
from learner.weights import NO_VERSION, WeightSource


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    every_env_steps: int = 2_000  # env steps between evaluations; lower costs more time
    n_episodes: int = 4  # greedy episodes per evaluation, played side by side
    final_episodes: int = 8  # greedy episodes after training
    max_steps: int = 2_000  # env steps after which an evaluation episode is cut
    # with a prior: episodes that are played again from the same seeds by the language model alone
    # and by search without it; 0 plays none
    prior_episodes: int = 1
    video: bool = True  # record the first episode of each evaluation as mp4

    def __post_init__(self) -> None:
        for name in ("every_env_steps", "n_episodes", "final_episodes", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")
        if self.prior_episodes < 0:
            raise ValueError(
                "evaluation.prior_episodes must not be negative, "
                f"got {self.prior_episodes}; 0 plays none"
            )


@dataclass(frozen=True, slots=True)
class ModeReport:
    """What the same starts came to when one mode chose the moves.

    unadvised_share: of the language model alone, moves that were drawn because it gave no answer
    """

    returns: tuple[float, ...]
    max_x: tuple[int, ...]  # empty outside Mario
    unadvised_share: float


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What n greedy episodes came to."""

    weight_version: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    end_reasons: tuple[str, ...]
    max_x: tuple[int, ...]  # empty outside Mario
    seconds: float
    video_mp4: bytes | None  # of the first episode
    modes: Mapping[Mode, ModeReport] = field(default_factory=dict)  # from the same seeds
    levels: tuple[str, ...] = ()  # stage of each episode
    clears: tuple[bool, ...] = ()  # whether each was won; empty in a game that can't be
    rows: tuple[Row, ...] = ()  # stage by stage, as launch/evaluate.py makes them

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))


class EvaluationLoop:
    """Plays episodes on its own games with the newest weights."""

    def __init__(
        self,
        *,
        player: Player,
        weight_source: WeightSource,
        config: EvaluationConfig,
        rng: np.random.Generator | None = None,
    ) -> None:
        """rng: draws the seeds of all starts"""
        self._rng = rng or np.random.default_rng(0)
        self._player = player
        self._episodes = EpisodePlayer(player, max_steps=config.max_steps, rng=self._rng)
        self._weight_source = weight_source
        self._config = config
        self._weight_version = NO_VERSION

    def evaluate(self, n_episodes: int, video: bool) -> EvaluationReport:
        """Pulls the newest weights and plays `n_episodes`, batched over the games.

        With a prior the first `evaluation.prior_episodes` of them are then played again, from the
        same seeds, in the other modes.
        """
        started = time.perf_counter()
        self._weight_version = self._player.pull_weights(self._weight_source, self._weight_version)
        has_prior = self._player.prior is not None
        n_again = min(self._config.prior_episodes, n_episodes) if has_prior else 0
        seeds = self._rng.integers(2**31 - 1, size=n_episodes).tolist()
        starts = [Start(seed) for seed in seeds]
        recording = VideoFile() if video and self._config.video else None
        episodes = self._episodes.play(
            starts, PlayStyle(), watch=None if recording is None else _recorder(recording)
        )
        self._weight_version = max(self._weight_version, self._episodes.weight_version)
        modes = self._compare(episodes[:n_again], starts[:n_again]) if n_again else {}
        return EvaluationReport(
            weight_version=self._weight_version,
            returns=tuple(e.total_reward for e in episodes),
            lengths=tuple(e.length for e in episodes),
            end_reasons=tuple(e.end for e in episodes),
            max_x=tuple(e.max_x for e in episodes if e.max_x is not None),
            seconds=time.perf_counter() - started,
            video_mp4=None if recording is None else recording.finish(),
            modes=modes,
            levels=tuple(e.level for e in episodes),
            clears=tuple(e.is_clear for e in episodes if e.is_clear is not None),
            rows=tuple(rows_of(OWN_WAY, episodes)),
        )

    def _compare(self, both: Sequence[Episode], starts: Sequence[Start]) -> dict[Mode, ModeReport]:
        """What other modes make of the starts of `both`, beside it."""
        reports: dict[Mode, ModeReport] = {"both": _mode_report(both, 0.0)}
        modes: tuple[Mode, ...] = ("llm", "search")
        for mode in modes:
            player = self._episodes
            player.n_moves = player.n_unadvised = 0
            episodes = player.play(starts, PlayStyle(mode))
            unadvised = player.n_unadvised / player.n_moves if mode == "llm" else 0.0
            reports[mode] = _mode_report(episodes, unadvised)
        return reports


def _recorder(video: VideoFile) -> Watch:
    def record(moment: Moment) -> None:
        if moment.picture is not None:
            video.add(moment.picture)

    return record


def _mode_report(episodes: Sequence[Episode], unadvised_share: float) -> ModeReport:
    return ModeReport(
        returns=tuple(e.total_reward for e in episodes),
        max_x=tuple(e.max_x for e in episodes if e.max_x is not None),
        unadvised_share=unadvised_share,
    )
