"""Where a shard's memory lies: on a GPU if it fits well, else in the host's, pinned beside a GPU.

Nothing here waits for the device except reading back, and asking a GPU for its free memory once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

if TYPE_CHECKING:
    from replay_service.config import ReplayConfig

# Of a GPU's free memory; the rest is the learner's: model, activations, batches.
_AUTO_SHARE = 0.5


def choose_device(config: ReplayConfig) -> tuple[torch.device, str]:
    """Where `config` puts frames, columns and sums, and why, in words for the log.

    auto: the GPU that this process sees if capacity_mb fits into half of its free memory, else
    the host. ValueError if cuda was asked for and cannot be had.
    """
    if config.device == "cpu":
        return torch.device("cpu"), "replay.device=cpu"
    free_mb = torch.cuda.mem_get_info()[0] / 1e6 if torch.cuda.is_available() else None
    wanted = f"capacity_mb={config.capacity_mb:g}"
    if config.device == "cuda":
        if free_mb is None:
            raise ValueError(
                "device is cuda, but this process sees no GPU; give the replay process one, or set "
                "replay.device to auto or cpu"
            )
        if config.capacity_mb > free_mb:
            raise ValueError(
                f"device is cuda, but {wanted} exceeds the {free_mb:.0f} MB that its GPU has free; "
                f"lower replay.capacity_mb or set replay.device to cpu"
            )
        return torch.device("cuda"), f"replay.device=cuda, {free_mb:.0f} MB free"
    if config.engine == "numba":
        return torch.device("cpu"), "auto: replay.engine=numba runs on the CPU"
    if free_mb is None:
        return torch.device("cpu"), "auto: this process sees no GPU"
    if config.capacity_mb > _AUTO_SHARE * free_mb:
        half = f"half of the {free_mb:.0f} MB that the GPU has free"
        return torch.device("cpu"), f"auto: {wanted} exceeds {half}"
    return torch.device("cuda"), f"auto: {wanted} fits into half of {free_mb:.0f} MB free"


def reserve(shape: tuple[int, ...], dtype: str, device: torch.device) -> Tensor:
    """Zeros. Host memory is touched only as it fills.

    Except on a machine with a GPU: there it is pinned, if the system allows to lock that much, so
    that the GPU can fetch from it.
    """
    if device.type == "cpu" and torch.cuda.is_available():
        try:
            return torch.zeros(shape, dtype=getattr(torch, dtype), pin_memory=True)
        except RuntimeError:  # torch's only sign that pages could not be locked
            pass
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype=dtype))
    return torch.zeros(shape, dtype=getattr(torch, dtype), device=device)


def upload(values: ArrayLike | Tensor, device: torch.device) -> Tensor:
    """`values` on `device`, sharing their memory where that can be; do not write to the result.

    They reach a GPU through pinned memory, without waiting for it.
    """
    if isinstance(values, Tensor):
        # Towards the host it must wait: nobody would know when the copy has arrived.
        return values.to(device, non_blocking=device.type == "cuda")
    array = np.ascontiguousarray(values)
    if device.type == "cpu" and array.flags.writeable:
        return torch.from_numpy(array)
    dtype = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
    staged = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    staged.numpy()[...] = array  # of read-only arrays torch would warn
    return staged.to(device, non_blocking=True)


def download(values: NDArray[np.generic] | Tensor) -> NDArray[np.generic]:
    """`values` in the host's memory; waits for the device."""
    if isinstance(values, Tensor):
        array: NDArray[np.generic] = values.cpu().numpy()
        return array
    return values
