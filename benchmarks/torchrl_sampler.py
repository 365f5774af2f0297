"""TorchRL's side of replay.py; runs on LightZero's Python, which has a torch that it fits.

Started by `sampler_contestants.py`, never by hand. Reads turns [batch, seconds, calls] line by line
from standard input and answers each with one line of JSON. Nothing of TorchRL is stored here.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch
from sampler_turn import ALPHA, BETA, check, make_priorities, take_turn

# TorchRL logs while it is imported: answers keep the real standard output.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# ruff: noqa: E402
from torchrl.data.replay_buffers.samplers import PrioritizedSampler
from torchrl.data.replay_buffers.storages import LazyTensorStorage


class TorchRLSampler:
    """PrioritizedSampler over a storage of one float32 an item, which it does not fetch."""

    def __init__(self, priorities: np.ndarray) -> None:
        n_items = len(priorities)
        self._storage = LazyTensorStorage(n_items)
        self._storage.set(range(n_items), torch.zeros(n_items))
        self._sampler = PrioritizedSampler(n_items, alpha=ALPHA, beta=BETA)
        self._sampler.update_priority(torch.arange(n_items), torch.from_numpy(priorities))

    def sample(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        indices, info = self._sampler.sample(self._storage, batch_size)
        return indices, info["priority_weight"]

    def update(self, indices: torch.Tensor, priorities: np.ndarray) -> None:
        self._sampler.update_priority(indices, torch.from_numpy(priorities))


def answer(value: object) -> None:
    ANSWERS.write(json.dumps(value) + "\n")
    ANSWERS.flush()


def main() -> None:
    torch.set_num_threads(1)
    priorities = make_priorities(int(sys.argv[1]))
    sampler, rng = TorchRLSampler(priorities), np.random.default_rng(1)
    check(sampler, priorities)
    answer(torch.__version__)
    for line in sys.stdin:
        batch_size, seconds, max_calls = json.loads(line)
        answer(take_turn(sampler, batch_size, seconds=seconds, max_calls=max_calls, rng=rng))


if __name__ == "__main__":
    main()
