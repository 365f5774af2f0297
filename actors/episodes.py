"""Whole episodes from given starts, played side by side: what the evaluator of a run, the command
that evaluates a checkpoint and the one that shows its play have in common. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actors.collect_report import end_reason, is_clear
from actors.envs.game import Game
from actors.player import Player
from actors.search.choice import GREEDY
from actors.search.result import SearchOutput
from actors.search.root_prior import RootPrior
from actors.segment_builder import stack_frames
from learner.weights import NO_VERSION

# Who chooses the moves: the language model alone, search without it, or search that begins from it.
Mode = Literal["llm", "search", "both"]


@dataclass(frozen=True, slots=True)
class Start:
    """Where an episode begins.

    seed:  of the episode and all its chance; None goes on from the game's last episode
    level: a stage of a game that has several; None draws one
    """

    seed: int | None = None
    level: str | None = None


@dataclass(frozen=True, slots=True)
class PlayStyle:
    """How moves are chosen.

    temperature: 0 plays the most visited action, above it visit shares ** (1 / temperature) are
        drawn from
    noise: the root noise of acting, which is the only chance that a Gumbel search has
    sticky: probability that a game repeats its last action instead of the chosen one, where that
        is legal (Machado et al. 2018, arXiv 1709.06009)
    """

    mode: Mode = "both"
    temperature: float = GREEDY
    noise: bool = False
    sticky: float = 0.0


@dataclass(slots=True)
class Episode:
    """How far one got; `end` is "" while it is being played.

    level: the stage that was played, "" in a game with one
    max_x: Mario's progress in pixels, None elsewhere
    is_clear: whether the game was won; None in a game that can't be
    """

    frames: list[NDArray[np.generic]]
    level: str = ""
    last_action: int = -1
    total_reward: float = 0.0
    length: int = 0
    max_x: int | None = None
    is_clear: bool | None = None
    end: str = ""

    def add(self, game: Game, action: int, *, max_steps: int) -> None:
        """Plays `action` in the game that this is an episode of."""
        frame, reward, terminated, truncated, info = game.step(action)
        self.frames = [*self.frames, frame][-game.spec.frame_stack :]
        self.last_action = action
        self.total_reward += reward
        self.length += 1
        if "max_x" in info:
            self.max_x = int(info["max_x"])
        self.is_clear = is_clear(info, terminated)
        if terminated or truncated:
            self.end = end_reason(info, terminated)
        elif self.length >= max_steps:
            self.end = "timeout"


@dataclass(frozen=True, slots=True)
class Moment:
    """One state of a game and what is about to be played there.

    picture: [H, W, 3] RGB, None if the game can't be drawn
    action: what is played, which the search need not have chosen where actions are sticky
    search_policy, model_policy, llm_prior: [A] shares, None where nobody was asked
    value: the search's, in units of return
    """

    picture: NDArray[np.uint8] | None
    options: tuple[str, ...]
    legal: NDArray[np.bool_] | None
    action: int
    prompt: str | None
    level: str
    total_reward: float
    length: int
    search_policy: NDArray[np.floating] | None = None
    model_policy: NDArray[np.floating] | None = None
    llm_prior: NDArray[np.floating] | None = None
    value: float | None = None


Watch = Callable[[Moment], None]


@dataclass(slots=True)
class _Decision:
    """actions: [B]; the rest is of the searches and questions that led to them."""

    actions: NDArray[np.int64]
    output: SearchOutput | None = None
    prior: RootPrior | None = None


class EpisodePlayer:
    """Plays with the weights that its player holds."""

    def __init__(self, player: Player, *, max_steps: int, rng: np.random.Generator) -> None:
        """max_steps: env steps after which an episode is cut, with the end "timeout"
        rng: draws what is played where the language model alone plays and has no answer
        """
        self._player = player
        self._games = player.games
        self._max_steps = max_steps
        self._rng = rng
        self.n_moves = self.n_unadvised = 0  # of the mode "llm"
        self.weight_version = NO_VERSION  # of the newest search

    def play(
        self,
        starts: Sequence[Start],
        style: PlayStyle,
        *,
        watch: Watch | None = None,
        done: Callable[[], None] | None = None,
    ) -> list[Episode]:
        """One episode per start, in order, as many side by side as there are games.

        watch: told of every move of the first episode
        done: called after each episode
        """
        episodes: list[Episode] = []
        while len(episodes) < len(starts):
            part = starts[len(episodes) : len(episodes) + len(self._games)]
            episodes += self._play_batch(part, style, None if episodes else watch, done)
        return episodes

    def _play_batch(
        self,
        starts: Sequence[Start],
        style: PlayStyle,
        watch: Watch | None,
        done: Callable[[], None] | None,
    ) -> list[Episode]:
        games = self._games[: len(starts)]
        episodes = []
        for env_id, (game, start) in enumerate(zip(games, starts, strict=True)):
            frame = game.reset(start.level, seed=start.seed)
            episodes.append(Episode([frame], level=game.level()))
            if self._player.prior is not None:
                self._player.prior.start_episode(env_id)
        # Which moves stick belongs to the start, so that it does not depend on the batch.
        chances = [np.random.default_rng([start.seed or 0, 1]) for start in starts]
        playing = list(range(len(games)))
        while playing:
            decision = self._decide(playing, episodes, style)
            for row, env_id in enumerate(playing):
                action = int(decision.actions[row])
                if chances[env_id].random() < style.sticky:
                    action = _sticky(games[env_id], episodes[env_id].last_action, action)
                if watch is not None and env_id == 0:
                    seen = moment_of(games[0], episodes[0], action)
                    watch(_with_opinions(seen, decision, row))
                episodes[env_id].add(games[env_id], action, max_steps=self._max_steps)
            ended = [env_id for env_id in playing if episodes[env_id].end]
            playing = [env_id for env_id in playing if not episodes[env_id].end]
            for _ in ended if done is not None else ():
                done()
        return episodes

    def _decide(self, playing: list[int], episodes: list[Episode], style: PlayStyle) -> _Decision:
        games = [self._games[env_id] for env_id in playing]
        spec = games[0].spec
        prior = self._ask(playing, games) if style.mode != "search" else None
        if style.mode == "llm":
            assert prior is not None, "no language model plays here"
            return _Decision(self._follow(prior, games), prior=prior)
        legal_rows = [game.legal() for game in games]
        output = self._player.planner.search(
            np.array(playing),
            np.stack([stack_frames(episodes[i].frames, spec.frame_stack) for i in playing]),
            np.array([episodes[i].last_action for i in playing]),
            None if legal_rows[0] is None else np.stack([r for r in legal_rows if r is not None]),
            mix=prior,
            add_noise=style.noise,
            temperature=style.temperature,
        )
        self.weight_version = output.weight_version
        return _Decision(output.action, output, prior)

    def _ask(self, playing: list[int], games: list[Game]) -> RootPrior | None:
        if self._player.prior is None:
            return None
        return self._player.prior.ask(
            prompts=[game.prompt() or "" for game in games],
            options=[game.option_texts() for game in games],
            legal=[game.legal() for game in games],
            env_ids=playing,
            keys=[game.coarse_key() for game in games],
        ).collect()

    def _follow(self, prior: RootPrior, games: list[Game]) -> NDArray[np.int64]:
        """The likeliest action of each game; a legal one is drawn, and counted, without advice."""
        actions = prior.probabilities.argmax(axis=1)
        self.n_moves += len(games)
        for row in np.flatnonzero(~prior.available):
            legal = games[row].legal()
            offered = np.arange(games[row].spec.n_actions) if legal is None else legal.nonzero()[0]
            actions[row] = self._rng.choice(offered)
            self.n_unadvised += 1
        return actions


def _sticky(game: Game, last_action: int, chosen: int) -> int:
    legal = game.legal()
    can_repeat = last_action >= 0 and (legal is None or bool(legal[last_action]))
    return last_action if can_repeat else chosen


def moment_of(game: Game, episode: Episode, action: int) -> Moment:
    """What is seen, with nobody's opinion."""
    return Moment(
        picture=game.render(),
        options=game.option_texts(),
        legal=game.legal(),
        action=action,
        prompt=game.prompt(),
        level=episode.level,
        total_reward=episode.total_reward,
        length=episode.length,
    )


def _with_opinions(moment: Moment, decision: _Decision, row: int) -> Moment:
    output, prior = decision.output, decision.prior
    if prior is not None and bool(prior.available[row]):
        moment = replace(moment, llm_prior=prior.probabilities[row])
    if output is None:
        return moment
    return replace(
        moment,
        search_policy=output.policy[row],
        model_policy=output.model_policy[row],
        value=float(output.root_value[row]),
    )
