"""Planning with the real emulator's save states; skips itself where the ROM isn't installed."""

from __future__ import annotations

import pytest

from actors.demonstrations import Planned, plan_episodes
from actors.demonstrations.planning import COMMITTED
from actors.envs import EnvConfig, make_game
from actors.envs.emulator import nes_py_folder
from actors.envs.rom import find_rom


@pytest.fixture(scope="module", autouse=True)
def rom() -> None:
    try:
        nes_py_folder()
        find_rom()
    except ValueError as error:
        pytest.skip(str(error))


def test_what_is_played_leads_ahead_and_can_be_played_again():
    """Trying things out changes nothing: the actions alone lead to the same states."""
    config = EnvConfig(noop_max=3)
    episodes: list[Planned] = []
    max_steps = 2 * COMMITTED + 2
    planned = plan_episodes(config, 1, max_steps=max_steps, seed=4, told=episodes.append)
    (episode,) = episodes
    assert len(planned.prompt) == episode.n_steps == max_steps and not episode.is_over
    game = make_game(config, seed=4)
    game.reset()
    total = 0.0
    for prompt, action in zip(planned.prompt, planned.action.tolist(), strict=True):
        assert prompt == game.prompt()
        _, reward, _, _, info = game.step(action)
        total += reward
    game.close()
    assert total == episode.total_reward and info["max_x"] == episode.max_x
    # Ten steps of running make some 80 pixels; idling and walking to and fro make fewer.
    assert episode.max_x > 40 + 50


def test_a_game_without_words_is_refused():
    with pytest.raises(ValueError, match=r"env\.id 'CartPole-v1' has no words"):
        plan_episodes(EnvConfig(id="CartPole-v1"), 1, max_steps=5, seed=0)
