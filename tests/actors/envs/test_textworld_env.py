"""Text games made by the real TextWorld: generation, commands as actions, rewards, bad input."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from actors.envs import TEXTWORLD_ID, EnvConfig, game_spec, make_game
from actors.envs.text_config import TextConfig
from actors.envs.textworld_games import find_games

pytest.importorskip("textworld", reason="needs TextWorld: EXTRAS=text make setup")
ROOT = Path(__file__).resolve().parents[3]
COOKING = ("recipe=2", "take=1", "go=6", "open=true", "cook=true", "cut=true")
# Kind, options: all that the generator offers, at sizes that take seconds.
GAMES = [
    ("coin_collector", ("level=3",)),
    ("treasure_hunter", ("level=5",)),
    ("simple", ("rewards=dense",)),
    ("cooking", COOKING),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("games"))


def make(cache: str, kind: str = "coin_collector", options=("level=3",), **settings):
    return gymnasium.make(
        TEXTWORLD_ID,
        disable_env_checker=True,
        cache=cache,
        kind=kind,
        options=options,
        **settings,
    ).unwrapped


@pytest.mark.parametrize(("kind", "options"), GAMES)
def test_following_the_solution_earns_the_whole_score(cache, kind, options):
    env = make(cache, kind, options, tell_solution=True)
    _, info = env.reset(seed=0)
    total, ended = 0.0, False
    for command in info["policy_commands"]:
        assert not ended
        action = env.commands.index(command)
        assert info["action_mask"][action]
        _, reward, ended, truncated, info = env.step(action)
        total += reward
    assert ended and not truncated and info["won"] and not info["lost"]
    assert total == info["score"] == info["max_score"] > 0
    env.close()


@pytest.mark.parametrize(("kind", "options"), GAMES)
def test_every_command_of_random_play_has_its_own_action(cache, kind, options):
    env = make(cache, kind, options)
    rng = np.random.default_rng(1)
    for _ in range(3):
        text, info = env.reset()
        ended = truncated = False
        while not (ended or truncated):
            legal = np.flatnonzero(info["action_mask"])
            assert [env.commands[i] for i in legal] == info["admissible_commands"]
            text, _, ended, truncated, info = env.step(rng.choice(legal))
            assert env.observation_space.contains(text)
            assert "\n" not in text and "  " not in text and "-=" not in text and "$$" not in text
    env.close()


def test_the_solution_is_for_tests_alone(cache):
    _, info = make(cache).reset()
    assert "policy_commands" not in info
    assert not any("solution" in name for name in TextConfig.__dataclass_fields__)


def test_gymnasium_accepts_it(cache):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(render|spec|unwrapped|max_length).*")
        check_env(make(cache), skip_render_check=True)


def test_levels_are_drawn_by_seed_or_named(cache):
    env = make(cache, "treasure_hunter", ("level=1",), seeds=(1, 2, 3))
    assert env.levels == ("treasure_hunter-1", "treasure_hunter-2", "treasure_hunter-3")
    drawn = []
    for seed in range(12):
        first, _ = env.reset(seed=seed)
        drawn.append(env.level())
        again, _ = env.reset(seed=seed)
        assert first == again and env.level() == drawn[-1]
    assert set(drawn) == set(env.levels)
    first, _ = env.reset(options={"stage": "treasure_hunter-2"})
    again, info = env.reset(options={"stage": "treasure_hunter-2"})
    assert info["stage"] == env.level() == "treasure_hunter-2" and first == again
    with pytest.raises(ValueError, match="unknown level 'x'; there are treasure_hunter-1"):
        env.reset(options={"stage": "x"})
    env.close()


def test_history_tells_earlier_commands_newest_first(cache):
    env = make(cache, history=1)
    env.reset()
    for command in ("inventory", "look", "examine coin"):
        text, reward, *_ = env.step(env.commands.index(command))
        assert reward == 0.0
    assert text.index("Last: examine coin") < text.index("Before: look")
    assert "Before: inventory" not in text
    prompt = env.prompt()
    assert prompt.index("Before: look") < prompt.index("Last: examine coin")
    assert sorted(prompt.split()) == sorted(text.split())
    env.reset()
    assert "Last:" not in env.prompt()


def test_an_episode_is_cut_after_max_steps(cache):
    env = make(cache, max_steps=3)
    env.reset()
    ends = [env.step(env.commands.index("look"))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def transcript(cache: str, n_steps: int = 25) -> list[tuple[str, float]]:
    env = make(cache, "cooking", COOKING, seeds=(7,))
    rng = np.random.default_rng(0)
    text, info = env.reset()
    told = [(text, 0.0)]
    for _ in range(n_steps):
        text, reward, _, _, info = env.step(rng.choice(np.flatnonzero(info["action_mask"])))
        told.append((text, reward))
    return told


def test_one_seed_makes_one_game_in_every_process(cache, tmp_path):
    """Sets and hashes must not leak into a game: actors on other machines generate it anew."""
    here = make(cache, "cooking", COOKING, seeds=(7,))
    code = (
        "import sys; from actors.envs.textworld_games import find_games;"
        f"find_games('cooking', {COOKING!r}, [7], sys.argv[1])"
    )
    environ = os.environ | {"PYTHONHASHSEED": "12", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environ, cwd=ROOT)
    there = make(str(tmp_path), "cooking", COOKING, seeds=(7,))
    assert there.commands == here.commands
    assert there.rom_hash == here.rom_hash
    assert transcript(cache) == transcript(str(tmp_path))


def test_processes_that_want_the_same_game_make_it_once(tmp_path):
    code = (
        "import sys; from actors.envs.textworld_games import find_games;"
        "find_games('treasure_hunter', ['level=1'], [4], sys.argv[1])"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(command, env=environ, cwd=ROOT) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    folders = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 1 and folders[0].startswith("treasure_hunter-4-")


def test_generation_says_so_on_a_terminal_and_only_there(tmp_path):
    code = (
        "import sys; from actors.envs.textworld_games import find_games;"
        "find_games('treasure_hunter', [], [4], sys.argv[1])"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    terminal, child_end = pty.openpty()
    subprocess.run(
        [*command, str(tmp_path / "a")], check=True, env=environ, cwd=ROOT, stderr=child_end
    )
    os.close(child_end)
    told = os.read(terminal, 10_000).decode()
    assert "[env] generating TextWorld game 1 of 1 (treasure_hunter, seed 4)" in told
    os.close(terminal)
    piped = [*command, str(tmp_path / "b")]
    done = subprocess.run(piped, check=True, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert "generating" not in done.stderr


def test_a_game_that_was_half_written_is_made_again(tmp_path):
    game = find_games("treasure_hunter", ["level=1"], [4], str(tmp_path))[0]
    (game.story.parent / "commands.json").unlink()
    assert find_games("treasure_hunter", ["level=1"], [4], str(tmp_path)) == [game]


def test_too_many_commands_are_refused_with_the_number(cache):
    with pytest.raises(ValueError, match=r"env.text.max_commands is 5, .* have \d+ different"):
        make(cache, max_commands=5)


def test_the_game_as_acting_sees_it(cache):
    config = EnvConfig(
        id=TEXTWORLD_ID, text=TextConfig(options=("level=3",), cache=cache, max_tokens=96)
    )
    spec = game_spec(config)
    game = make_game(config, seed=3)
    frame = game.reset()
    assert spec == game.spec and spec.is_text and spec.n_actions == len(game.option_texts())
    assert frame.shape == (96,) and frame.dtype == np.int32 and frame[0] > 0
    assert "Goal: " in game.prompt() and game.level() == "coin_collector-0"
    legal = game.legal()
    assert 0 < legal.sum() < spec.n_actions
    _, reward, *_ = game.step(int(np.flatnonzero(legal)[0]))
    assert reward == 0.0
    game.close()


def test_a_combination_that_can_not_be_generated_says_so(cache):
    with pytest.raises(ValueError, match="can't generate coin_collector with level=300"):
        make(cache, options=("level=300",))


def test_a_cache_that_can_not_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"env.text.cache .*file/games' can't be written"):
        make(str(blocked / "games"))
