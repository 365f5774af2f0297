"""Versioned world-model weights: what the learner publishes and actors pull."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NO_VERSION = -1  # what a process that never had published weights holds
N_KEPT_VERSIONS = 2  # the newest, and the one that readers may still be fetching


@dataclass(frozen=True, slots=True)
class Weights:
    """One published version. Versions only grow, across restarts too.

    version: the learner's update count when it published, plus whatever restarts added.
    tensors: state-dict name -> CPU array; read-only where it came through shared memory.
    """

    version: int
    tensors: dict[str, NDArray[np.generic]]


class WeightSource(Protocol):
    """Where an acting process pulls weights from, at a collect boundary only."""

    def pull_if_newer(self, version: int) -> Weights | None:
        """Newest weights if newer than `version`, else None; never an older version."""


class WeightSink(Protocol):
    """Where the learner publishes."""

    def push(self, weights: Weights) -> None:
        """Publish; an outage is counted and not raised, the next publication replaces this one."""

    def published_version(self) -> int:
        """Newest version that readers may have, NO_VERSION if none (or no answer)."""


class WeightStore:
    """The last two published versions, in this process: sink of the learner, source of acting."""

    def __init__(self) -> None:
        self._kept: list[Weights] = []

    def published_version(self) -> int:
        """Newest version held, NO_VERSION while empty."""
        return self._kept[-1].version if self._kept else NO_VERSION

    def push(self, weights: Weights) -> None:
        """Keep `weights`; ValueError unless they are newer than all before."""
        require_newer(weights.version, self.published_version())
        self._kept = [*self._kept, weights][-N_KEPT_VERSIONS:]

    def pull_if_newer(self, version: int) -> Weights | None:
        """Newest weights if newer than `version`, else None."""
        return self._kept[-1] if self.published_version() > version else None


def require_newer(version: int, newest: int) -> None:
    """ValueError if publishing `version` after `newest` would turn acting back."""
    if version <= newest:
        raise ValueError(
            f"weights version {version} is not newer than the published version {newest}; after "
            "a restart call Learner.advance_version with the published version before pushing"
        )


def snapshot_weights(model: nn.Module, version: int) -> Weights:
    """A copy of the model's state on the CPU; synchronises a CUDA device."""
    tensors = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    return Weights(version, {name: np.array(value) for name, value in tensors.items()})


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy published weights into the model's parameters; ValueError names what does not fit."""
    state = model.state_dict()
    unmatched = sorted(state.keys() ^ weights.tensors.keys())
    if unmatched:
        raise ValueError(
            f"weights version {weights.version} and the model disagree on {unmatched}; "
            "learner and actors must be built from the same world_model settings"
        )
    with torch.no_grad():
        for name, value in state.items():
            array = weights.tensors[name]
            if array.shape != tuple(value.shape):
                raise ValueError(
                    f"weights version {weights.version}: {name} has shape {array.shape}, "
                    f"the model wants {tuple(value.shape)}"
                )
            value.copy_(torch.tensor(array))
