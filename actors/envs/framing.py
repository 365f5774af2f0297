"""From any Gymnasium observation to the frame that replay stores and the world model reads."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import gymnasium
import numpy as np
from gymnasium.spaces.utils import flatten, flatten_space
from numpy.typing import NDArray

from actors.envs.config import EnvConfig
from learner.world_model.text_tokens import TextTokenizer, make_tokenizer

Frame = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Framing:
    """How one environment's observations become frames.

    shape: (C, H, W) of uint8 images, (D,) of float32 vectors or (L,) of int32 token ids; frames are
           fresh arrays.
    """

    space: gymnasium.Space
    shape: tuple[int, ...]
    is_gray: bool = False  # images only: colours are mixed into one channel
    tokenizer: TextTokenizer | None = None  # texts only

    @property
    def dtype(self) -> str:
        if self.tokenizer is not None:
            return "int32"
        return "uint8" if len(self.shape) == 3 else "float32"

    def frame(self, observation: object) -> Frame:
        if self.tokenizer is not None:
            return self.tokenizer.ids(str(observation), self.shape[0])
        if len(self.shape) == 1:
            return np.array(flatten(self.space, observation), dtype=np.float32)
        image = np.asarray(observation)
        if image.ndim == 2:
            image = image[:, :, None]
        if image.shape[2] == 3 and self.is_gray:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
        if image.shape[:2] != self.shape[1:]:
            size = (self.shape[2], self.shape[1])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return np.array(image.reshape(*self.shape[1:], self.shape[0]).transpose(2, 0, 1), order="C")


def framing_of(env: gymnasium.Env, config: EnvConfig) -> Framing:
    """Images: uint8 boxes [H, W] or [H, W, 1 or 3], shrunk to env.size if larger; texts; vectors.

    Raises ValueError naming env.id if the observations are none of these.
    """
    cv2.setNumThreads(1)
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Text):
        if config.frame_stack > 1:
            raise ValueError(
                f"env.frame_stack must be 1 for texts, got {config.frame_stack}; what came before "
                "is told by env.text.history"
            )
        tokenizer = make_tokenizer(config.text.encoder)
        return Framing(space, (config.text.max_tokens,), tokenizer=tokenizer)
    if _is_image(space):
        height, width = space.shape[:2]
        is_gray = config.color == "gray"
        n_channels = 1 if is_gray or len(space.shape) == 2 else space.shape[2]
        is_large = max(height, width) > config.size
        shape = (config.size, config.size) if is_large else (height, width)
        return Framing(space, (n_channels, *shape), is_gray)
    try:
        flat = flatten_space(space)
    except NotImplementedError:
        flat = None
    if not isinstance(flat, gymnasium.spaces.Box):
        raise ValueError(
            f"env.id {config.id!r} has the observation space {space}, neither an image "
            "nor something that flattens into a vector, nor a text; choose another environment "
            "or wrap it"
        )
    return Framing(space, (int(np.prod(flat.shape)),))


def _is_image(space: gymnasium.Space) -> bool:
    return (
        isinstance(space, gymnasium.spaces.Box)
        and space.dtype == np.uint8
        and (len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3)))
        and min(space.shape[:2]) >= 8
    )
