"""Raw tokens of each environment's recent real steps: what a lost KV window is rebuilt from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
NO_ACTION = -1
NO_STEP = -1  # of an environment without an episode


@dataclass(frozen=True, slots=True)
class HistoryTail:
    """The last K raw steps of B environments, oldest first; entries before step 0 are arbitrary.

    steps:  [B] int64, of the newest one
    obs:    [B, K, *obs_shape]
    action: [B, K] int64
    """

    steps: Ints
    obs: NDArray[np.generic]
    action: Ints


class History:
    """Rings of the last `n_steps` observations and the actions that led to them.

    A token at the top of L layers depends on L * (W - 1) earlier steps, so with n_steps =
    L * (W - 1) + 1 the newest window can be recomputed exactly.
    obs: [n_envs, n_steps, *obs_shape]; action: [n_envs, n_steps], NO_ACTION at an episode's start
    """

    def __init__(
        self, n_envs: int, n_steps: int, obs_shape: tuple[int, ...], obs_dtype: str
    ) -> None:
        self.n_steps = n_steps
        self.step: Ints = np.full(n_envs, NO_STEP, np.int64)  # newest step of each episode
        self._obs = np.zeros((n_envs, n_steps, *obs_shape), obs_dtype)
        self._action: Ints = np.full((n_envs, n_steps), NO_ACTION, np.int64)

    def append(self, envs: Ints, obs: NDArray[np.generic], action: Ints) -> Ints:
        """Add one step for each of the distinct `envs`; NO_ACTION starts a new episode.

        Returns the steps [B] now newest, counted from 0 in each episode.
        """
        starts = action == NO_ACTION
        lost = np.flatnonzero(~starts & (self.step[envs] == NO_STEP))
        if len(lost):
            raise ValueError(
                f"environment {envs[lost[0]]} (row {lost[0]}) continues an episode that never "
                f"started here: last_action is {action[lost[0]]}; pass -1 on its first search"
            )
        steps = np.where(starts, 0, self.step[envs] + 1)
        self.step[envs] = steps
        self._obs[envs, steps % self.n_steps] = obs
        self._action[envs, steps % self.n_steps] = action
        return steps

    def obs(self, envs: Ints, steps: Ints) -> NDArray[np.generic]:
        """Observations at `steps` (broadcast with `envs`); negative steps give arbitrary ones."""
        return self._obs[envs, steps % self.n_steps]

    def action(self, envs: Ints, steps: Ints) -> Ints:
        """Actions that led to `steps`; NO_ACTION at step 0."""
        return self._action[envs, steps % self.n_steps]

    def tail(self, envs: Ints) -> HistoryTail:
        """What the newest step's window is rebuilt from: the steps before it."""
        newest = self.step[envs] - 1
        past = newest[:, None] + np.arange(2 - self.n_steps, 1)
        return HistoryTail(newest, self.obs(envs[:, None], past), self.action(envs[:, None], past))

    def restore(self, envs: Ints, tail: HistoryTail) -> None:
        """Take over the tail of another history of equal depth; the episodes go on after it."""
        n_kept = tail.action.shape[1]
        if n_kept != self.n_steps - 1:
            raise ValueError(
                f"a history of {n_kept} steps can't restore one of {self.n_steps - 1}; client and "
                "service must be built from the same world_model settings"
            )
        past = (tail.steps[:, None] + np.arange(1 - n_kept, 1)) % self.n_steps
        self._obs[envs[:, None], past] = tail.obs
        self._action[envs[:, None], past] = tail.action
        self.step[envs] = tail.steps

    def forget(self, envs: Ints) -> None:
        """Drop the episodes of `envs`; each must begin anew or be restored."""
        self.step[envs] = NO_STEP
