"""Greedy episodes with search and without exploration, and the video of one of them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from numpy.typing import NDArray

from actors.collect_report import end_reason
from actors.player import Player
from actors.segment_builder import stack_frames
from learner.weights import NO_VERSION, WeightSource

VIDEO_FPS = 15  # one frame per agent step; Mario's frame skip of 4 makes this about real time


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    every_env_steps: int = 2_000  # env steps between evaluations; lower costs more time
    n_episodes: int = 4  # greedy episodes per evaluation, played side by side
    final_episodes: int = 8  # greedy episodes after training
    max_steps: int = 2_000  # env steps after which an evaluation episode is cut
    video: bool = True  # record the first episode of each evaluation as mp4

    def __post_init__(self) -> None:
        for name in ("every_env_steps", "n_episodes", "final_episodes", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")


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
    ) -> None:
        self._player = player
        self._games = player.games
        self._planner = player.planner
        self._prior = player.prior
        self._weight_source = weight_source
        self._config = config
        self._weight_version = NO_VERSION

    def evaluate(self, n_episodes: int, video: bool) -> EvaluationReport:
        """Pulls the newest weights and plays `n_episodes`, batched over the games."""
        started = time.perf_counter()
        self._weight_version = self._player.pull_weights(self._weight_source, self._weight_version)
        episodes: list[_Episode] = []
        recording: bytes | None = None
        while len(episodes) < n_episodes:
            n_games = min(len(self._games), n_episodes - len(episodes))
            record = video and self._config.video and not episodes
            played, data = self._play_batch(n_games, record)
            recording = data if data is not None else recording
            episodes += played
        return EvaluationReport(
            weight_version=self._weight_version,
            returns=tuple(e.total_reward for e in episodes),
            lengths=tuple(e.length for e in episodes),
            end_reasons=tuple(e.end for e in episodes),
            max_x=tuple(e.max_x for e in episodes if e.max_x is not None),
            seconds=time.perf_counter() - started,
            video_mp4=recording,
        )

    def _play_batch(self, n_games: int, record: bool) -> tuple[list[_Episode], bytes | None]:
        episodes = [_Episode([game.reset()]) for game in self._games[:n_games]]
        video = _VideoFile() if record else None
        playing = list(range(n_games))
        while playing:
            actions = self._decide(playing, episodes)
            if video is not None and not episodes[0].end:
                picture = self._games[0].render()
                if picture is not None:
                    video.add(picture)
            for env_id, action in zip(playing, actions, strict=True):
                self._step(env_id, int(action), episodes[env_id])
            playing = [env_id for env_id in playing if not episodes[env_id].end]
        return episodes, video.finish() if video is not None else None

    def _decide(self, playing: list[int], episodes: list[_Episode]) -> NDArray[np.int64]:
        """The most visited action of each playing game."""
        games = [self._games[env_id] for env_id in playing]
        spec = games[0].spec
        legal_rows = [game.legal() for game in games]
        prior = None
        if self._prior is not None:
            prior = self._prior.ask(
                prompts=[game.prompt() or "" for game in games],
                options=[game.option_texts() for game in games],
                legal=legal_rows,
            ).collect()
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
