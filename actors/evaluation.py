"""Greedy episodes with search and without exploration, and the video of one of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from actors.collect_report import end_reason
from actors.envs.game import Game
from actors.player import Player
from actors.search.root_prior import RootPrior
from actors.segment_builder import stack_frames
from learner.weights import NO_VERSION, WeightSource

# Who chooses the moves: the language model alone, search without it, or search that begins from it.
Mode = Literal["llm", "search", "both"]
VIDEO_FPS = 15  # one frame per agent step; Mario's frame skip of 4 makes this about real time


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

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))


@dataclass(slots=True)
class _Episode:
    frames: list[NDArray[np.generic]]
    last_action: int = -1
    total_reward: float = 0.0
    length: int = 0
    max_x: int | None = None
    end: str = ""


class _VideoFile:
    """Streams frames to a temporary mp4; frames of a long episode would not fit in memory."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warpzone-video-")
        self._path = Path(self._folder.name) / "episode.mp4"
        self._writer = imageio.get_writer(
            self._path, fps=VIDEO_FPS, codec="libx264", macro_block_size=2
        )

    def add(self, frame: NDArray[np.uint8]) -> None:
        self._writer.append_data(frame)

    def finish(self) -> bytes | None:
        """The file's bytes, None if no frame was added."""
        self._writer.close()
        data = self._path.read_bytes() if self._path.exists() else None
        self._folder.cleanup()
        return data


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
        """rng: draws the seeds of episodes that are played in several modes"""
        self._rng = rng or np.random.default_rng(0)
        self._n_moves = self._n_unadvised = 0
        self._player = player
        self._games = player.games
        self._planner = player.planner
        self._prior = player.prior
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
        episodes: list[_Episode] = []
        recording: bytes | None = None
        n_again = min(self._config.prior_episodes, n_episodes) if self._prior is not None else 0
        # Without a comparison the games go on from one episode to the next.
        seeds = self._rng.integers(2**31 - 1, size=n_episodes).tolist() if n_again else None
        while len(episodes) < n_episodes:
            part = range(len(episodes), min(n_episodes, len(episodes) + len(self._games)))
            record = video and self._config.video and not episodes
            starts = [None if seeds is None else seeds[index] for index in part]
            played, data = self._play_batch(starts, "both", record)
            recording = data if data is not None else recording
            episodes += played
        modes = {} if seeds is None else self._compare(episodes[:n_again], seeds[:n_again])
        return EvaluationReport(
            weight_version=self._weight_version,
            returns=tuple(e.total_reward for e in episodes),
            lengths=tuple(e.length for e in episodes),
            end_reasons=tuple(e.end for e in episodes),
            max_x=tuple(e.max_x for e in episodes if e.max_x is not None),
            seconds=time.perf_counter() - started,
            video_mp4=recording,
            modes=modes,
        )

    def _compare(self, both: list[_Episode], seeds: list[int]) -> dict[Mode, ModeReport]:
        """What other modes make of the starts of `both`, beside it."""
        reports = {"both": _mode_report(both, 0.0)}
        for mode in ("llm", "search"):
            self._n_moves = self._n_unadvised = 0
            episodes: list[_Episode] = []
            while len(episodes) < len(seeds):
                part = seeds[len(episodes) : len(episodes) + len(self._games)]
                episodes += self._play_batch(part, mode, record=False)[0]
            unadvised = self._n_unadvised / self._n_moves if mode == "llm" else 0.0
            reports[mode] = _mode_report(episodes, unadvised)
        return reports

    def _play_batch(
        self, seeds: Sequence[int | None], mode: Mode, record: bool
    ) -> tuple[list[_Episode], bytes | None]:
        """One episode per seed, side by side; None goes on from the game's last episode."""
        games = self._games[: len(seeds)]
        episodes = [
            _Episode([game.reset(seed=seed)]) for game, seed in zip(games, seeds, strict=True)
        ]
        for env_id in range(len(games)):
            if self._prior is not None:
                self._prior.start_episode(env_id)
        video = _VideoFile() if record else None
        playing = list(range(len(games)))
        while playing:
            actions = self._decide(playing, episodes, mode)
            if video is not None and not episodes[0].end:
                picture = self._games[0].render()
                if picture is not None:
                    video.add(picture)
            for env_id, action in zip(playing, actions, strict=True):
                self._step(env_id, int(action), episodes[env_id])
            playing = [env_id for env_id in playing if not episodes[env_id].end]
        return episodes, video.finish() if video is not None else None

    def _decide(
        self, playing: list[int], episodes: list[_Episode], mode: Mode
    ) -> NDArray[np.int64]:
        """The action of each playing game: the most visited one, or the likeliest."""
        games = [self._games[env_id] for env_id in playing]
        spec = games[0].spec
        prior = self._ask(playing, games) if mode != "search" else None
        if mode == "llm":
            assert prior is not None, "no language model plays here"
            return self._follow(prior, games)
        legal_rows = [game.legal() for game in games]
        output = self._planner.search(
            np.array(playing),
            np.stack([stack_frames(episodes[i].frames, spec.frame_stack) for i in playing]),
            np.array([episodes[i].last_action for i in playing]),
            None if legal_rows[0] is None else np.stack([r for r in legal_rows if r is not None]),
            mix=prior,
            add_noise=False,
        )
        self._weight_version = output.weight_version
        return output.action

    def _ask(self, playing: list[int], games: list[Game]) -> RootPrior | None:
        if self._prior is None:
            return None
        return self._prior.ask(
            prompts=[game.prompt() or "" for game in games],
            options=[game.option_texts() for game in games],
            legal=[game.legal() for game in games],
            env_ids=playing,
            keys=[game.coarse_key() for game in games],
        ).collect()

    def _follow(self, prior: RootPrior, games: list[Game]) -> NDArray[np.int64]:
        """The likeliest action of each game; a legal one is drawn, and counted, without advice."""
        actions = prior.probabilities.argmax(axis=1)
        self._n_moves += len(games)
        for row in np.flatnonzero(~prior.available):
            legal = games[row].legal()
            offered = np.arange(games[row].spec.n_actions) if legal is None else legal.nonzero()[0]
            actions[row] = self._rng.choice(offered)
            self._n_unadvised += 1
        return actions

    def _step(self, env_id: int, action: int, episode: _Episode) -> None:
        game = self._games[env_id]
        frame, reward, terminated, truncated, info = game.step(action)
        episode.frames = [*episode.frames, frame][-game.spec.frame_stack :]
        episode.last_action = action
        episode.total_reward += reward
        episode.length += 1
        if "max_x" in info:
            episode.max_x = int(info["max_x"])
        if terminated or truncated:
            episode.end = end_reason(info, terminated)
        elif episode.length >= self._config.max_steps:
            episode.end = "timeout"


def _mode_report(episodes: Sequence[_Episode], unadvised_share: float) -> ModeReport:
    return ModeReport(
        returns=tuple(e.total_reward for e in episodes),
        max_x=tuple(e.max_x for e in episodes if e.max_x is not None),
        unadvised_share=unadvised_share,
    )
