"""Generated text games solved by TextWorld, which knows the way through each of its games."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np

from actors.demonstrations.notebook import Notebook
from actors.envs.config import TEXTWORLD_ID
from actors.envs.construction import textworld_settings
from actors.envs.text_config import TextConfig
from replay_service.targets import TextBatch


def solve_games(
    config: TextConfig, told: Callable[[int, int], None] = lambda n_solved, n_games: None
) -> TextBatch:
    """Every state on TextWorld's way through each of the games, with the command to say there.

    told: after each game, how many are solved and how many there are

    Raises ValueError if TextWorld is not installed or can't make such games, and RuntimeError if
    its own solution does not win within `max_steps`.
    """
    env = gymnasium.make(
        TEXTWORLD_ID, disable_env_checker=True, tell_solution=True, **textworld_settings(config)
    ).unwrapped
    notebook = Notebook()
    try:
        for n_solved, level in enumerate(env.levels, 1):
            _, info = env.reset(seed=0, options={"stage": level})
            is_over = False
            while not is_over:
                command = next(iter(info["policy_commands"]), None)
                if command is None:
                    raise RuntimeError(f"TextWorld knows no way on in the game {level}")
                action = env.commands.index(command)
                legal = np.asarray(info["action_mask"], np.bool_)
                notebook.add(env.prompt(), env.commands, legal, action)
                _, _, terminated, truncated, info = env.step(action)
                is_over = terminated or truncated
            if not info["won"]:
                raise RuntimeError(
                    f"the solution of the game {level} takes more than env.text.max_steps="
                    f"{config.max_steps}; raise it"
                )
            told(n_solved, len(env.levels))
    finally:
        env.close()
    return notebook.as_batch()
