"""Plans ahead in the game itself, through its own save states: no model, no learning.

Rollouts from the present point: each action held, then random ones. The first actions of the one
that earned most are played, of a held one where it does not matter: whoever learns from the play
finds the same answer in like states. It plays well where a few seconds ahead tell right from wrong,
as in Mario's first stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.demonstrations.notebook import Notebook
from actors.envs.config import EnvConfig
from actors.envs.game import Game, make_game
from replay_service.targets import TextBatch

N_RANDOM = 16  # rollouts from each point that is planned from, beside one for each action
HORIZON = 20  # steps of a rollout
COMMITTED = 5  # steps played of the best one before planning again
WORTH = 1.25  # times as much must a random rollout earn to be played instead of a held action
LONGEST_HOLD = 10  # steps for which a rollout keeps an action: jumps need a button held


@dataclass(frozen=True, slots=True)
class Planned:
    """One episode: its level, length, sum of rewards, and largest x where the game has one."""

    level: str
    n_steps: int
    total_reward: float
    max_x: int | None
    is_over: bool  # else it was cut at the most steps


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sum of rewards, whether it ended with a punishment, such as Mario's death, and actions."""

    earned: float
    is_lost: bool
    actions: list[int]


def plan_episodes(
    config: EnvConfig,
    n_episodes: int,
    *,
    max_steps: int,
    seed: int,
    told: Callable[[Planned], None] = lambda episode: None,
) -> TextBatch:
    """What was played in which state, over episodes of at most `max_steps`.

    told: is given every finished episode

    Raises ValueError naming env.id if the game has no words, RuntimeError if it can't save states.
    """
    game = make_game(config, seed)
    rng = np.random.default_rng(seed)
    notebook = Notebook()
    try:
        for _ in range(n_episodes):
            game.reset()
            if game.prompt() is None:
                raise ValueError(
                    f"env.id {config.id!r} has no words to learn from; see docs/priors.md for "
                    "what an environment adds"
                )
            told(_plan_episode(game, rng, notebook, max_steps))
    finally:
        game.close()
    return notebook.as_batch()


def _plan_episode(
    game: Game, rng: np.random.Generator, notebook: Notebook, max_steps: int
) -> Planned:
    level, n_steps, total, max_x, is_over = game.level(), 0, 0.0, None, False
    while not is_over and n_steps < max_steps:
        for action in _best_actions(game, rng)[: max_steps - n_steps]:
            prompt = game.prompt()
            assert prompt is not None
            notebook.add(prompt, game.option_texts(), game.legal(), action)
            _, reward, terminated, truncated, info = game.step(action)
            n_steps, total = n_steps + 1, total + reward
            max_x = int(info["max_x"]) if "max_x" in info else None
            if is_over := terminated or truncated:
                break
    return Planned(level, n_steps, total, max_x, is_over)


def _best_actions(game: Game, rng: np.random.Generator) -> list[int]:
    """The first actions of the best rollout; the game is where it was."""
    start = game.save_state()
    held = [_tried(game, rng, start, int(action)) for action in _legal_actions(game)]
    random = [_tried(game, rng, start, None) for _ in range(N_RANDOM)]
    plain, mixed = max(held, key=_worth), max(random, key=_worth)
    is_better = plain.is_lost or mixed.earned > WORTH * plain.earned
    return (mixed if is_better and not mixed.is_lost else plain).actions[:COMMITTED]


def _worth(rollout: Rollout) -> tuple[bool, float]:
    return not rollout.is_lost, rollout.earned


def _tried(game: Game, rng: np.random.Generator, start: object, held: int | None) -> Rollout:
    rollout = _roll_out(game, rng, held)
    game.load_state(start)
    return rollout


def _roll_out(game: Game, rng: np.random.Generator, held: int | None) -> Rollout:
    """From here on, at most HORIZON steps: `held` while it is legal, else random actions."""
    earned, played, is_lost = 0.0, [], False
    action, hold = (0, 0) if held is None else (held, HORIZON)
    while len(played) < HORIZON:
        legal = game.legal()
        if hold == 0 or (legal is not None and not legal[action]):
            action = int(rng.choice(_legal_actions(game)))
            hold = int(rng.integers(1, LONGEST_HOLD + 1))
        _, reward, terminated, truncated, _ = game.step(action)
        earned, hold = earned + reward, hold - 1
        played.append(action)
        if terminated or truncated:
            is_lost = terminated and reward < 0
            break
    return Rollout(earned, is_lost, played)


def _legal_actions(game: Game) -> NDArray[np.int64]:
    legal = game.legal()
    return np.arange(game.spec.n_actions) if legal is None else np.flatnonzero(legal)
