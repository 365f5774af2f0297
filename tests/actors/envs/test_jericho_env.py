"""Jericho with a real interpreter, on a story file that TextWorld compiles.

Such a file is of unknown md5, so it is played with given commands; searching for valid commands
needs a game of jericho's list and is tested only where WARPZONE_STORY names one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from actors.envs import JERICHO_ID, EnvConfig
from actors.envs.construction import make_env
from actors.envs.jericho_env import home_of, place_commands
from actors.envs.textworld_games import find_games

COMMANDS = ("look", "inventory", "go north", "go east", "go south", "go west", "take coin")


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> str:
    pytest.importorskip("textworld", reason="needs TextWorld: EXTRAS=text make setup")
    pytest.importorskip("jericho", reason="needs jericho: EXTRAS=text make setup")
    cache = str(tmp_path_factory.mktemp("games"))
    return str(find_games("coin_collector", ["level=2"], [0], cache)[0].story)


def make(story: str, **settings):
    env = gymnasium.make(
        JERICHO_ID,
        disable_env_checker=True,
        **{"game": story, "commands": COMMANDS, "max_commands": 50} | settings,
    )
    return env.unwrapped


def play(env, command: str):
    return env.step(env.option_texts().index(command))


def test_gymnasium_accepts_it(story):
    env = make(story)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(render|spec|unwrapped|max_length).*")
        check_env(env, skip_render_check=True)
    env.close()


def test_looking_around_changes_nothing_in_the_game(story):
    env = make(story, max_steps=3, history=0)
    text, info = env.reset()
    assert "carrying nothing" in text and "\n" not in text
    assert info["admissible_commands"] == sorted(COMMANDS) and info["action_mask"].sum() == 7
    again, reward, terminated, truncated, _ = play(env, "look")
    assert again.startswith(text) and (reward, terminated, truncated) == (0.0, False, False)
    play(env, "inventory")
    assert play(env, "look")[2:4] == (False, True)
    assert env.reset()[0] == text
    env.close()


def test_a_game_that_hangs_is_killed_replaced_and_counted(story):
    env = make(story, limit_s=1.0)
    first, _ = env.reset()
    hung = env.story.pid
    os.kill(hung, signal.SIGSTOP)  # gives no answer, as in an endless loop
    started = time.monotonic()
    text, reward, terminated, truncated, info = play(env, "look")
    assert time.monotonic() - started < 10.0
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["hung"] and info["games_replaced"] == 1 and info["action_mask"].all()
    assert text and not os.path.exists(f"/proc/{hung}")
    again, info = env.reset()
    assert again == first and not info["hung"] and env.story.pid != hung
    os.kill(env.story.pid, signal.SIGKILL)  # and one that dies
    assert play(env, "look")[4]["games_replaced"] == 2
    assert env.reset()[0] == first
    env.close()


def test_closing_leaves_no_process(story):
    env = make(story)
    pid = env.story.pid
    env.close()
    assert not os.path.exists(f"/proc/{pid}")


def test_an_unknown_game_is_refused_with_its_md5_and_the_known_names(story):
    message = r"env.game '.*game.z8' has md5 [0-9a-f]{32}, which jericho does not know.*zork1"
    with pytest.raises(ValueError, match=message):
        make(story, commands=None)
    with pytest.raises(ValueError, match=message):
        make_env(EnvConfig(id=JERICHO_ID, game=story))


def test_a_missing_spacy_model_is_named_with_the_command(story, tmp_path, monkeypatch):
    if importlib.util.find_spec("en_core_web_sm") is not None:
        pytest.skip("spaCy's model is installed here")
    digest = hashlib.md5(Path(story).read_bytes(), usedforsecurity=False).hexdigest()
    # Makes the file a known one in the child, which finds this on its path.
    (tmp_path / "sitecustomize.py").write_text(
        f"from jericho import defines\ndefines.BINDINGS_DICT[{digest!r}] = {{'name': 'coin'}}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"spaCy's model en_core_web_sm.*spacy download en_core"):
        make(story, commands=None)


@pytest.mark.parametrize("content", [b"", b"no story at all" * 100])
def test_what_is_no_story_file_is_refused(story, tmp_path, content):
    path = tmp_path / "bad.z5"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"env.game '.*bad.z5'"):
        make(str(path), commands=None)


def test_a_missing_file_and_no_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"env.game '/nowhere/zork.z5' is no file; name the"):
        make("/nowhere/zork.z5")
    with pytest.raises(ValueError, match=r"env.game is empty; name the story file"):
        EnvConfig(id=JERICHO_ID)


@given(st.sets(st.text("abc ", min_size=1, max_size=6), max_size=30), st.integers(30, 60))
def test_every_command_has_one_index_and_a_lone_one_its_own(commands, n_actions):
    placed = place_commands(sorted(commands), n_actions)
    assert sorted(placed.values()) == sorted(commands)
    assert all(0 <= index < n_actions for index in placed)
    homes = [home_of(command, n_actions) for command in commands]
    if len(set(homes)) == len(homes):
        assert {command: index for index, command in placed.items()} == dict(
            zip(commands, homes, strict=True)
        )


def test_more_commands_than_actions_are_refused():
    with pytest.raises(ValueError, match="max_commands is 2, but a state offers 3 commands"):
        place_commands(("a", "b", "c"), 2)


def test_a_known_game_offers_valid_commands_and_remembers_them():
    path = os.environ.get("WARPZONE_STORY")
    if path is None:
        pytest.skip("WARPZONE_STORY names no story file of jericho's list")
    env = make(path, commands=None, max_commands=1_000, limit_s=60.0)
    _, info = env.reset()
    assert info["admissible_commands"]
    started = time.monotonic()
    assert env.reset()[1]["admissible_commands"] == info["admissible_commands"]
    assert time.monotonic() - started < 1.0
    assert np.flatnonzero(info["action_mask"]).size == len(info["admissible_commands"])
    env.close()
