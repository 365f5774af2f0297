"""An episode that a person plays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from actors.envs.config import EnvConfig
from actors.envs.emulator import BUTTON_A, BUTTON_DOWN, BUTTON_LEFT, BUTTON_RIGHT
from actors.envs.game import Game
from actors.envs.mario_actions import button_bytes
from actors.episodes import Episode, Moment, Start, moment_of

QUIT = "q"
NAMES = "1234567890abcdefghijklmnoprstuvwxyz"  # of actions, without QUIT
_MARIO_ARROWS = {
    "space": 0,
    "right": BUTTON_RIGHT,
    "left": BUTTON_LEFT,
    "up": BUTTON_RIGHT | BUTTON_A,
    "down": BUTTON_DOWN,
}


class KeySource(Protocol):
    def read(self, timeout_s: float | None) -> str | None: ...


def keys_of(env: EnvConfig, n_actions: int) -> dict[str, int]:
    """Action by key. Raises ValueError where there are more actions than keys."""
    if n_actions > len(NAMES):
        raise ValueError(
            f"{env.id} has {n_actions} actions, more than the {len(NAMES)} keys of a person; "
            "watch the checkpoint play instead, without --person"
        )
    keys = {NAMES[action]: action for action in range(n_actions)}
    if env.is_mario:
        buttons = button_bytes(env.action_set)
        arrows = _MARIO_ARROWS.items()
        keys |= {key: buttons.index(byte) for key, byte in arrows if byte in buttons}
    elif n_actions in (2, 3):
        keys |= {"left": 0, "right": n_actions - 1}
    return keys


def help_line(keys: Mapping[str, int], moment: Moment) -> str:
    """Which key does what here."""
    names: dict[int, list[str]] = {}
    for key, action in keys.items():
        if moment.legal is None or moment.legal[action]:
            names.setdefault(action, []).append(key)
    told = [f"{'/'.join(keys)} {moment.options[action]}" for action, keys in names.items()]
    return f"keys: {', '.join(told)}, {QUIT} gives up"


def play_person(
    game: Game,
    start: Start,
    source: KeySource,
    keys: Mapping[str, int],
    show: Callable[[Moment], None],
    *,
    fps: float,
    max_steps: int,
) -> Episode:
    """One episode; its end is "given up" after QUIT. Raises EOFError when no keys can come.

    fps: actions a second, each of which stays until another key; 0 waits for a key each time
    """
    episode = Episode([game.reset(start.level, seed=start.seed)], level=game.level())
    action = 0
    due = time.monotonic()
    while not episode.end:
        show(moment_of(game, episode, action))
        if fps:
            due = max(due + 1.0 / fps, time.monotonic())
            pressed = _pressed_until(source, due)
        else:
            pressed = source.read(None)
        if pressed == QUIT:
            episode.end = "given up"
            break
        legal = game.legal()
        wanted = keys.get(pressed or "")
        if wanted is None or (legal is not None and not legal[wanted]):
            if not fps:
                continue  # a key that means nothing here is no move
        else:
            action = wanted
        episode.add(game, action, max_steps=max_steps)
    return episode


def _pressed_until(source: KeySource, due: float) -> str | None:
    """The newest key by then."""
    newest = None
    while True:
        pressed = source.read(max(0.0, due - time.monotonic()))
        if pressed is None or pressed == QUIT:
            return pressed or newest
        newest = pressed
