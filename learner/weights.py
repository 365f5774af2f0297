"""Versioned world-model weights: what the learner publishes and actors pull."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Weights:
    """One published version. Versions only grow, across restarts too.

    version: the learner's update count when it published.
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

    def push(self, weights: Weights) -> None: ...
