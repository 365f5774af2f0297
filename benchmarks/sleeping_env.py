"""A game whose steps only sleep: `benchmarks.sleeping_env:Sleeping-500ms-v0` as env.id.

Many env actors of it can share a core, as they could not if they emulated and searched.
"""

from __future__ import annotations

import time

import gymnasium
import numpy as np
from numpy.typing import NDArray

STEP_MS = (100, 250, 500, 1_000, 2_000)
EPISODE_STEPS = 100
N_VALUES = 4


class SleepingEnv(gymnasium.Env):
    """Episodes of equal length; observations and rewards are always the same."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (N_VALUES,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, step_s: float) -> None:
        """step_s: seconds of a step, for the emulation and the search that there is none of"""
        self._step_s = step_s
        self._n_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, object]]:
        super().reset(seed=seed)
        self._n_steps = 0
        return np.zeros(N_VALUES, np.float32), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, object]]:
        time.sleep(self._step_s)
        self._n_steps += 1
        observation = np.zeros(N_VALUES, np.float32)
        return observation, 1.0, self._n_steps >= EPISODE_STEPS, False, {}


for step_ms in STEP_MS:
    gymnasium.register(
        f"Sleeping-{step_ms}ms-v0", SleepingEnv, kwargs={"step_s": step_ms / 1_000.0}
    )
