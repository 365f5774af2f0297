"""A game in a terminal: pictures, bars, and keys through a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import termios
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from actors.envs.game import make_game
from actors.episodes import Moment, Start
from launch.config import load_preset
from launch.playing.overlay import HEIGHT, MOST_ACTIONS, draw_moment, shown_actions
from launch.playing.person import help_line, keys_of, play_person
from launch.playing.terminal import Keys, opinion_lines, picture_lines

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def make_moment(n_actions: int = 3, **fields: object) -> Moment:
    shares = np.full(n_actions, 1.0 / n_actions)
    shown = {
        "picture": np.zeros((240, 256, 3), np.uint8),
        "options": tuple(f"do thing {i}" for i in range(n_actions)),
        "legal": None,
        "action": 1,
        "prompt": "a state",
        "level": "1-1",
        "total_reward": 3.25,
        "length": 7,
        "search_policy": shares,
        "model_policy": shares,
        "llm_prior": None,
        "value": 1.5,
    }
    return Moment(**{**shown, **fields})


def test_a_picture_fits_the_cells_it_is_given() -> None:
    picture = np.zeros((240, 256, 3), np.uint8)
    picture[:120] = (255, 0, 0)
    for columns, rows in ((80, 20), (20, 50), (1, 1)):
        lines = picture_lines(picture, columns, rows)
        assert 1 <= len(lines) <= max(rows, 1)
        assert all(len(ESCAPES.sub("", line)) <= columns for line in lines)
    lines = picture_lines(picture, 80, 20)
    assert "38;2;255;0;0;48;2;255;0;0" in lines[0] and "38;2;0;0;0" in lines[-1]


def test_bars_say_who_thinks_what_and_mark_the_move() -> None:
    lines = opinion_lines(make_moment(), 100)
    assert lines[0] == "stage 1-1, step 7, return 3.2, value 1.50"
    assert lines[1].split() == ["search", "policy"], "the prior was not asked"
    assert [line[0] for line in lines[2:]] == [" ", ">", " "]
    assert all(line.count("0.33") == 2 for line in lines[2:])


@pytest.mark.parametrize("n_actions", [1, 3, MOST_ACTIONS, 55])
def test_frames_of_an_episode_are_of_one_even_size(n_actions) -> None:
    with_prior = make_moment(n_actions, action=0, llm_prior=np.full(n_actions, 1.0 / n_actions))
    silent = make_moment(n_actions, action=0, search_policy=None, model_policy=None, value=None)
    frames = [draw_moment(with_prior), draw_moment(silent)]
    assert frames[0].shape == frames[1].shape and frames[0].shape[0] == HEIGHT
    assert frames[0].shape[1] % 2 == 0
    assert not np.array_equal(*frames)
    assert draw_moment(make_moment(n_actions, action=0, picture=None)).shape[0] == HEIGHT
    assert draw_moment(make_moment(picture=np.zeros((1, 7, 3), np.uint8))).shape[1] % 2 == 0


def test_of_many_actions_the_most_searched_and_the_played_one_are_shown() -> None:
    shares = np.arange(55) / sum(range(55))
    legal = np.ones(55, bool)
    legal[54] = False
    shown = shown_actions(make_moment(55, action=2, search_policy=shares, legal=legal))
    assert shown == [2, *range(46, 54)]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    for descriptor in (ours, theirs):
        try:
            os.close(descriptor)
        except OSError:
            continue  # closed by the test


def test_keys_come_one_at_a_time_and_the_terminal_is_given_back(terminal) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    with Keys(theirs) as keys:
        assert keys.read(0.01) is None
        os.write(ours, b"a \x1b[C\x1bOA1")
        assert [keys.read(1.0) for _ in range(5)] == ["a", "space", "right", "up", "1"]
        assert termios.tcgetattr(theirs) != before
    assert termios.tcgetattr(theirs) == before


def test_a_terminal_that_is_gone_ends_the_waiting(terminal) -> None:
    ours, theirs = terminal
    with pytest.raises(EOFError), Keys(theirs) as keys:
        os.close(ours)
        keys.read(1.0)


class Typist:
    """Presses the given keys, then nothing."""

    def __init__(self, keys: str) -> None:
        self.keys = list(keys)

    def read(self, timeout_s: float | None) -> str | None:
        if timeout_s is None:
            return self.keys.pop(0)
        return self.keys.pop(0) if self.keys else None


def test_a_person_plays_by_turns_and_gives_up() -> None:
    env = load_preset("cartpole").env
    game = make_game(env, 0)
    keys = keys_of(env, 2)
    assert keys == {"1": 0, "2": 1, "left": 0, "right": 1}
    seen: list[Moment] = []
    episode = play_person(
        game, Start(3), Typist("12x12q"), keys, seen.append, fps=0.0, max_steps=50
    )
    assert (episode.length, episode.total_reward, episode.end) == (4, 4.0, "given up")
    assert [m.action for m in seen][1:3] == [0, 1]
    assert "1/left action 0, 2/right action 1, q gives up" in help_line(keys, seen[0])
    game.close()


def test_in_mario_a_move_stays_until_another_key() -> None:
    env = replace(load_preset("mario-quick").env, noop_max=0)
    game = make_game(env, 0)
    keys = keys_of(env, game.spec.n_actions)
    seen: list[Moment] = []
    source = Typist("2")
    episode = play_person(game, Start(3), source, keys, seen.append, fps=1e6, max_steps=12)
    assert (episode.length, episode.end, episode.max_x > 60) == (12, "timeout", True)
    assert [m.action for m in seen[1:]] == [1] * 11
    assert (keys["space"], keys["right"]) == (0, 1)
    game.close()


def test_too_many_actions_for_a_keyboard() -> None:
    with pytest.raises(ValueError, match="36 actions, more than the 35 keys"):
        keys_of(load_preset("textworld").env, 36)
