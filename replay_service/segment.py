"""The unit of data that acting hands to replay: consecutive steps of one episode, as numpy columns.

A segment never crosses an episode boundary. Successive segments of one episode overlap by
`TargetConfig.context_steps`, so that every position of the episode is trainable exactly once.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class GameSpec:
    """What replay and the world model must know of an environment."""

    obs_shape: tuple[int, ...]  # one frame: (C, H, W) for images, (D,) for vectors
    obs_dtype: str  # "uint8" for images, "float32" for vectors
    n_actions: int
    frame_stack: int = 1  # frames joined along the first axis to make one observation

    def __post_init__(self) -> None:
        if len(self.obs_shape) not in (1, 3):
            raise ValueError(f"obs_shape must be (D,) or (C, H, W), got {self.obs_shape}")
        if self.obs_dtype not in ("uint8", "float32"):
            raise ValueError(f"obs_dtype must be uint8 or float32, got {self.obs_dtype!r}")
        if self.n_actions < 1 or self.frame_stack < 1:
            raise ValueError(
                f"n_actions and frame_stack must be positive, got {self.n_actions}, "
                f"{self.frame_stack}"
            )

    @property
    def is_image(self) -> bool:
        return len(self.obs_shape) == 3

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape of one observation as the world model sees it."""
        return (self.obs_shape[0] * self.frame_stack, *self.obs_shape[1:])


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Where a segment came from; replay de-duplicates by `segment_id`."""

    run_id: str
    actor: int
    incarnation: int  # how often this actor was restarted
    sequence: int  # counts the segments of one incarnation
    env_id: int
    level: str  # stage or game, "" if the environment has one level
    seed: int
    rom_hash: str  # "" where there is no ROM
    weight_version_min: int
    weight_version_max: int
    prior_version: int  # -1 if no LLM prior was used
    reward_version: int
    schema_version: int = SCHEMA_VERSION

    @property
    def segment_id(self) -> tuple[int, int, int]:
        return (self.actor, self.incarnation, self.sequence)


@dataclass(frozen=True, slots=True)
class Segment:
    """T steps of one episode; A actions; F = frame_stack.

    obs:         [F - 1 + T + 1, *obs_shape] single frames. Step t's observation is the frames
                 t .. t + F - 1 joined along the first axis; at an episode's start the first frame
                 is repeated. The last frame follows the last action (the final observation of an
                 ended episode).
    action:      [T] int16
    reward:      [T] float32, already scaled by the environment
    terminated, truncated: [T] bool; only the last step may be set, at most one of them
    policy:      [T, A] float16, visit shares; zero for illegal actions
    root_value:  [T] float16, search values
    legal:       [T, A] bool, or None when every action is always legal
    prompt:      per step the text shown to the LLM, "" where none was asked; or None
    options:     per step the option text of each action, or None
    priority:    [T] float32, |search value - n-step bootstrap| as the actor saw it
    n_trainable: positions 0 .. n_trainable - 1 may start a sample; the rest is context that the
                 episode's next segment repeats
    """

    header: SegmentHeader
    obs: NDArray[np.generic]
    action: NDArray[np.int16]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    policy: NDArray[np.float16]
    root_value: NDArray[np.float16]
    priority: NDArray[np.float32]
    n_trainable: int
    legal: NDArray[np.bool_] | None = None
    prompt: tuple[str, ...] | None = None
    options: tuple[tuple[str, ...], ...] | None = None
    checksum: int = field(default=0)

    def __len__(self) -> int:
        return len(self.action)
