"""TextWorld's own solutions as demonstrations, made by the real generator."""

from __future__ import annotations

import numpy as np
import pytest

from actors.demonstrations import solve_games
from actors.envs import TEXTWORLD_ID, EnvConfig, make_game
from actors.envs.text_config import TextConfig
from learner.language.prompt import PromptBuilder
from learner.language.prompt_config import PromptConfig
from learner.language.tiny_llm import ensure_tiny_llm

pytest.importorskip("textworld", reason="needs TextWorld: EXTRAS=text make setup")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TextConfig:
    cache = str(tmp_path_factory.mktemp("games"))
    return TextConfig(options=("level=2",), seeds=(0, 1), cache=cache)


def test_what_is_demonstrated_wins_every_game_in_its_own_words(config):
    """Played again as a run plays: the same prompts, options and, at the end, the coin."""
    told: list[tuple[int, int]] = []
    solved = solve_games(config, lambda n_solved, n_games: told.append((n_solved, n_games)))
    assert told == [(1, 2), (2, 2)]
    game = make_game(EnvConfig(id=TEXTWORLD_ID, text=config), seed=5)
    levels, step = ["coin_collector-0", "coin_collector-1"], 0
    for level in levels:
        game.reset(level)
        is_over, total = False, 0.0
        while not is_over:
            assert solved.prompt[step] == game.prompt()
            listed = np.array([text != "" for text in solved.options[step]])
            assert np.array_equal(listed, game.legal())
            action = int(solved.action[step])
            assert solved.options[step][action] == game.option_texts()[action]
            assert solved.policy[step, action] == 1.0 == solved.policy[step].sum()
            _, reward, terminated, truncated, _ = game.step(action)
            is_over, total, step = terminated or truncated, total + reward, step + 1
        assert terminated and total == 1.0
    assert step == len(solved.prompt)
    game.close()


def test_a_solution_longer_than_an_episode_is_an_error(config):
    short = TextConfig(options=config.options, seeds=config.seeds, cache=config.cache, max_steps=1)
    with pytest.raises(RuntimeError, match=r"takes more than env\.text\.max_steps=1; raise it"):
        solve_games(short)


def test_a_prompt_that_is_too_long_still_tells_the_place(config):
    """What is cut is the oldest history: place and inventory are nearest to the options."""
    solved = solve_games(config)
    builder = PromptBuilder(ensure_tiny_llm(), PromptConfig(max_tokens=250), seed=0)
    whole = PromptBuilder(ensure_tiny_llm(), PromptConfig(max_tokens=4_000), seed=0)
    n_cut = 0
    for prompt, options in zip(solved.prompt, solved.options, strict=True):
        cut = builder.build(prompt, options).request.token_ids
        n_cut += len(whole.build(prompt, options).request.token_ids) > len(cut)
        assert "You are carrying" in builder.text(cut)
        assert prompt[-60:] in builder.text(cut)
    assert n_cut > 0
