"""Turns the steps of one environment into segments for replay. Used by the acting loop, per env."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from replay_service.segment import GameSpec, Segment, SegmentHeader
from replay_service.targets import TargetConfig


@dataclass(frozen=True, slots=True)
class Step:
    """What acting learned at one environment step; A actions."""

    action: int
    reward: float
    terminated: bool
    truncated: bool
    policy: NDArray[np.float32]  # [A] what the search teaches
    root_value: float
    legal: NDArray[np.bool_] | None  # [A]
    prompt: str  # "" where the LLM was not asked
    options: tuple[str, ...]  # option text of each action, () without a prompt
    weight_version: int
    prior_version: int  # -1 without an LLM prior
    advantage: NDArray[np.float32] | None = None  # [A] as in Segment, where replay keeps it


def initial_priorities(
    reward: NDArray[np.float32],
    root_value: NDArray[np.float32],
    *,
    terminated: bool,
    n_step: int,
    discount: float,
) -> NDArray[np.float32]:
    """|search value - n-step bootstrap| per step, [T]; what an actor can know before learning.

    Past the last step the value is 0 after a termination; otherwise (truncation, or context of a
    running episode) the last known search value stands in for the unknown one.
    """
    n_steps = len(reward)
    tail = 0.0 if terminated else float(root_value[-1])
    values = np.concatenate([root_value.astype(np.float64), np.full(n_step, tail)])
    rewards = np.concatenate([reward.astype(np.float64), np.zeros(n_step)])
    target = np.zeros(n_steps)
    for k in range(n_step):
        target += discount**k * rewards[k : k + n_steps]
    steps_left = np.minimum(n_step, n_steps - np.arange(n_steps))
    target += discount**steps_left * values[np.arange(n_steps) + n_step]
    return np.abs(values[:n_steps] - target).astype(np.float32)


def stack_frames(frames: list[NDArray[np.generic]], n_stacked: int) -> NDArray[np.generic]:
    """The last `n_stacked` frames joined along the first axis; the first repeats if too few."""
    if n_stacked == 1:
        return frames[-1]
    missing = max(0, n_stacked - len(frames))
    return np.concatenate([frames[0]] * missing + frames[-n_stacked:], axis=0)


class SegmentBuilder:
    """Collects the steps of one env and cuts segments that overlap by the targets' context."""

    def __init__(
        self,
        spec: GameSpec,
        targets: TargetConfig,
        segment_length: int,
        header: Callable[[int, int, int], SegmentHeader],
    ) -> None:
        """`header(weight_version_min, weight_version_max, prior_version)` makes the next header."""
        self._spec = spec
        self._targets = targets
        self._segment_length = segment_length
        self._header = header
        self._frames: list[NDArray[np.generic]] = []
        self._steps: list[Step] = []

    def start_episode(self, frame: NDArray[np.generic]) -> None:
        """Begins an episode; `frame` is repeated to fill the frame stack."""
        self._frames = [frame] * self._spec.frame_stack
        self._steps = []

    def observation(self) -> NDArray[np.generic]:
        """The current stacked observation, [*spec.stacked_shape]."""
        return stack_frames(self._frames, self._spec.frame_stack)

    def add(self, step: Step, next_frame: NDArray[np.generic]) -> Segment | None:
        """Appends a step and the frame after it; returns a segment when one is complete."""
        self._steps.append(step)
        self._frames.append(next_frame)
        if step.terminated or step.truncated:
            return self._cut(len(self._steps))
        if len(self._steps) >= self._segment_length + self._targets.context_steps:
            segment = self._cut(self._segment_length)
            self._steps = self._steps[self._segment_length :]
            self._frames = self._frames[self._segment_length :]
            return segment
        return None

    def _cut(self, n_trainable: int) -> Segment:
        steps = self._steps
        reward = np.array([s.reward for s in steps], np.float32)
        root_value = np.array([s.root_value for s in steps], np.float32)
        has_prompt = any(s.prompt for s in steps)
        versions = [s.weight_version for s in steps]
        prior_version = [s.prior_version for s in steps]
        return Segment(
            header=self._header(min(versions), max(versions), max(prior_version)),
            obs=np.stack(self._frames).astype(self._spec.obs_dtype, copy=False),
            action=np.array([s.action for s in steps], np.int16),
            reward=reward,
            terminated=np.array([s.terminated for s in steps]),
            truncated=np.array([s.truncated for s in steps]),
            policy=np.stack([s.policy for s in steps]).astype(np.float16),
            root_value=root_value.astype(np.float16),
            legal=_rows([s.legal for s in steps]),
            advantage=_rows([s.advantage for s in steps], np.float16),
            prior_version=np.array(prior_version, np.int32) if max(prior_version) >= 0 else None,
            prompt=tuple(s.prompt for s in steps) if has_prompt else None,
            options=tuple(s.options for s in steps) if has_prompt else None,
            priority=initial_priorities(
                reward,
                root_value,
                terminated=steps[-1].terminated,
                n_step=self._targets.n_step,
                discount=self._targets.discount,
            ),
            n_trainable=n_trainable,
        ).with_checksum()


def _rows(
    rows: list[NDArray[np.generic] | None], dtype: DTypeLike = None
) -> NDArray[np.generic] | None:
    """[T, A], or None where steps have no such row."""
    held = [row for row in rows if row is not None]
    return np.stack(held).astype(dtype or held[0].dtype, copy=False) if held else None
