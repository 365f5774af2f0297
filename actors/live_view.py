"""What an env actor shows of its games to somebody who looks, and keeps at hand for that.

Without a wish nothing is drawn, cut out or encoded; a step then costs two appended numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.envs.game import Game
from actors.prior.client import PendingPrior
from actors.search import SearchOutput
from actors.search.tree_picture import TreePicture

MOST_ACTIONS = 16  # shown of each environment: those that anybody thinks most of
MOST_POINTS = 200  # of an episode's curves
CLOSE_PIXELS = 320  # longer side of the picture that is looked at closely, at most
THUMBNAIL_PIXELS = 128  # of the others; half of Mario's
FAST_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)


@dataclass(frozen=True, slots=True)
class ViewWish:
    """What somebody wants to see of one env actor, once.

    n_envs: its first so many environments
    closely: the environment, if it is one of this actor, that is wanted large and with its tree
    """

    n_envs: int
    closely: int | None = None


@dataclass(frozen=True, slots=True)
class EpisodePath:
    """An episode so far, thinned out: P points.

    every: env steps between two points
    value: [P] float32, root values; total_reward: [P] float32, collected before each of them
    """

    every: int
    value: NDArray[np.float32]
    total_reward: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EnvView:
    """One environment before a move, and what search, model and language model think of it.

    K actions are shown, the `indices` [K] of all, called `actions`; policies are [K] float32.
    """

    env_id: int
    level: str
    frame_png: bytes | None  # none if the game can't be drawn
    prompt: str  # the state in words
    llm_text: str  # what the language model read, whole; only where looked at closely
    n_actions: int
    indices: NDArray[np.int64]
    actions: tuple[str, ...]
    chosen: int  # the action about to be played, by its index
    search_policy: NDArray[np.float32]
    model_policy: NDArray[np.float32]
    llm_prior: NDArray[np.float32] | None
    root_value: float
    length: int  # env steps of the episode so far
    total_reward: float
    path: EpisodePath
    tree: TreePicture | None
    tree_actions: tuple[str, ...]  # what the tree's actions are called, edge by edge


@dataclass(slots=True)
class _Episode:
    value: list[float] = field(default_factory=list)
    total_reward: list[float] = field(default_factory=list)


class LiveViews:
    """Owned by an acting loop, used from its thread."""

    def __init__(self, games: Sequence[Game]) -> None:
        self._games = games
        self._episodes = [_Episode() for _ in games]
        self._wish: ViewWish | None = None
        self._left: set[int] = set()  # environments that are still to be shown

    def want(self, wish: ViewWish | None) -> None:
        """A newer wish takes the place of what is left of an older one."""
        if wish is not None:
            self._wish = wish
            self._left = set(range(min(wish.n_envs, len(self._games))))
            if wish.closely is not None and 0 <= wish.closely < len(self._games):
                self._left.add(wish.closely)

    def tree_row(self, env_ids: NDArray[np.int64]) -> int | None:
        """The row of a search over `env_ids` whose tree is wanted."""
        closely = None if self._wish is None else self._wish.closely
        if closely is None or closely not in self._left:
            return None
        rows = np.flatnonzero(env_ids == closely)
        return int(rows[0]) if len(rows) else None

    def moved(self, env_id: int, value: float, reward: float) -> None:
        """A step was played from a root of this value."""
        episode = self._episodes[env_id]
        episode.value.append(value)
        before = episode.total_reward[-1] if episode.total_reward else 0.0
        episode.total_reward.append(before + reward)

    def ended(self, env_id: int) -> None:
        """The next step begins an episode."""
        self._episodes[env_id] = _Episode()

    def take(
        self, env_ids: NDArray[np.int64], output: SearchOutput, asked: PendingPrior | None
    ) -> list[EnvView]:
        """What is wanted of these environments, whose moves were searched and not played yet.

        The one that is looked at closely waits for a search that brings its tree along.
        """
        if not self._left:
            return []
        views = []
        for row, env_id in enumerate(env_ids.tolist()):
            is_close = self._wish is not None and self._wish.closely == env_id
            if env_id not in self._left or (is_close and output.tree_row != row):
                continue
            self._left.remove(env_id)
            views.append(self._view(env_id, row, output, asked, is_close=is_close))
        return views

    def _view(
        self,
        env_id: int,
        row: int,
        output: SearchOutput,
        asked: PendingPrior | None,
        *,
        is_close: bool,
    ) -> EnvView:
        game, path = self._games[env_id], self._episodes[env_id]
        llm = asked.collect() if asked is not None else None
        prior = llm.probabilities[row] if llm is not None and llm.available[row] else None
        opinions = [output.policy[row], output.model_policy[row]]
        if prior is not None:
            opinions.append(prior)
        indices = _most_thought_of(opinions)
        texts = game.option_texts()
        tree = output.tree if is_close else None
        return EnvView(
            env_id=env_id,
            level=game.level(),
            frame_png=_picture(game, CLOSE_PIXELS if is_close else THUMBNAIL_PIXELS),
            prompt=game.prompt() or "",
            llm_text=asked.text_read(row) if asked is not None and is_close else "",
            n_actions=len(texts),
            indices=indices,
            actions=tuple(texts[index] for index in indices),
            chosen=int(output.action[row]),
            search_policy=output.policy[row][indices],
            model_policy=output.model_policy[row][indices],
            llm_prior=None if prior is None else prior[indices].astype(np.float32),
            root_value=float(output.root_value[row]),
            length=len(path.value),
            total_reward=path.total_reward[-1] if path.total_reward else 0.0,
            path=_thinned(path, float(output.root_value[row])),
            tree=tree,
            tree_actions=() if tree is None else tuple(texts[a] for a in tree.action),
        )


def _most_thought_of(opinions: Sequence[NDArray[np.floating]]) -> NDArray[np.int64]:
    """Indices of the MOST_ACTIONS with the largest shares, in their own order."""
    most = np.max(opinions, axis=0)
    return np.sort(np.argsort(-most, kind="stable")[:MOST_ACTIONS])


def _thinned(episode: _Episode, value_now: float) -> EpisodePath:
    values = [*episode.value, value_now]
    rewards = [0.0, *episode.total_reward]
    every = -(-len(values) // MOST_POINTS)
    return EpisodePath(
        every, np.array(values[::every], np.float32), np.array(rewards[::every], np.float32)
    )


def _picture(game: Game, most_pixels: int) -> bytes | None:
    frame = game.render()
    if frame is None:
        return None
    height, width = frame.shape[:2]
    scale = most_pixels / max(height, width)
    if scale < 1:
        size = (round(width * scale), round(height * scale))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    blue_first = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)  # as OpenCV writes it
    ok, data = cv2.imencode(".png", blue_first, FAST_PNG)
    return data.tobytes() if ok else None
