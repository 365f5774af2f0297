"""The prioritized samplers that `replay.py` compares, each over the same n items.

All draw in proportion to priority^ALPHA and give importance weights of exponent BETA. Not equal:
- ours and TorchRL's fetch no item; cpprb has no way not to: it stores one float32 an item here
- ours alone checks, by generation, that what is updated is still what was sampled
- ours, tianshou's and numpy's sums are float64; cpprb's and TorchRL's are float32 (their defaults)
- ours and cpprb draw one item a stratum, tianshou, TorchRL and numpy independent ones; numpy's
  without replacement
- importance is normalised by the largest of the batch; cpprb and TorchRL use the largest possible
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import interpreter, packages
from benchmarks.sampler_turn import ALPHA, BETA, Times
from replay_service import Handles
from replay_service.sampler import PrioritySampler
from replay_service.torch_sampler import TorchSampler

Priorities = NDArray[np.float32]
FLOOR = 1e-3
SCRIPT = Path(__file__).with_name("torchrl_sampler.py")


class Ours:
    """The sampler of `Replay` as it uses it: with generations, and checks of what comes back."""

    def __init__(self, priorities: Priorities, *, engine: str = "numba", device: str = "cpu"):
        self._n_items = len(priorities)
        self._rng = np.random.default_rng(0)
        self._generation = torch.zeros(len(priorities), dtype=torch.int64, device=device)
        self._is_numba = engine == "numba"
        self._wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else _no_wait
        if self._is_numba:
            self._sampler: Any = PrioritySampler(len(priorities), alpha=ALPHA, floor=FLOOR)
        else:
            self._sampler = TorchSampler(len(priorities), alpha=ALPHA, floor=FLOOR, device=device)
        self._sampler.insert(0, priorities)

    def sample(self, batch_size: int) -> tuple[Any, Any]:
        slots, importance = self._sampler.draw(batch_size, self._n_items, BETA, self._rng)
        rows = torch.from_numpy(slots) if self._is_numba else slots
        generation = self._generation.index_select(0, rows)
        self._handles = Handles(0, slots, generation.numpy() if self._is_numba else generation)
        self._wait()
        return slots, importance

    def update(self, indices: Any, priorities: Priorities) -> None:
        self._sampler.write_back(self._handles, priorities, self._generation)
        self._wait()


def _no_wait() -> None:
    pass


class Cpprb:
    """cpprb 11.0.0's PrioritizedReplayBuffer, with the smallest item it can have."""

    def __init__(self, priorities: Priorities) -> None:
        sys.path.append(str(packages("samplers")))
        from cpprb import PrioritizedReplayBuffer

        self._buffer = PrioritizedReplayBuffer(len(priorities), {"item": {}}, alpha=ALPHA)
        self._buffer.add(item=np.zeros(len(priorities), dtype=np.float32), priorities=priorities)

    def sample(self, batch_size: int) -> tuple[Any, Any]:
        batch = self._buffer.sample(batch_size, BETA)
        return batch["indexes"], batch["weights"]

    def update(self, indices: Any, priorities: Priorities) -> None:
        self._buffer.update_priorities(indices, priorities)


class Tianshou:
    """tianshou 2.0.1's segment tree, called in the way its prioritized buffer calls it."""

    def __init__(self, priorities: Priorities) -> None:
        path = packages("samplers") / "tianshou" / "data" / "utils" / "segtree.py"
        spec = importlib.util.spec_from_file_location("tianshou_segtree", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._tree = module.SegmentTree(len(priorities))
        self._highest, self._lowest = float(priorities.max()), float(priorities.min())
        self._tree[np.arange(len(priorities))] = priorities.astype(np.float64) ** ALPHA

    def sample(self, batch_size: int) -> tuple[Any, Any]:
        indices = self._tree.get_prefix_sum_idx(np.random.rand(batch_size) * self._tree.reduce())
        importance = (self._tree[indices] / self._lowest) ** -BETA
        return indices, importance / importance.max()

    def update(self, indices: Any, priorities: Priorities) -> None:
        positive = np.abs(priorities) + np.finfo(np.float32).eps
        self._tree[indices] = positive**ALPHA
        self._highest = max(self._highest, positive.max())
        self._lowest = min(self._lowest, positive.min())


class NumpyChoice:
    """EfficientZero's method: a flat array, normalised as a whole for every batch."""

    def __init__(self, priorities: Priorities) -> None:
        self._priorities = priorities.astype(np.float64)

    def sample(self, batch_size: int) -> tuple[Any, Any]:
        shares = self._priorities**ALPHA
        shares /= shares.sum()
        n_items = len(shares)
        indices = np.random.choice(n_items, batch_size, p=shares, replace=False)
        importance = (n_items * shares[indices]) ** -BETA
        return indices, importance / importance.max()

    def update(self, indices: Any, priorities: Priorities) -> None:
        self._priorities[indices] = priorities


class TorchRL:
    """TorchRL 0.13.3's PrioritizedSampler in a process of its own, on LightZero's torch.

    Takes its turns when asked, on the same core; use as a context manager.
    """

    def __init__(self, n_items: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("w+")
        environment = os.environ | {"PYTHONPATH": str(packages("torchrl")), "OMP_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [interpreter("lightzero"), SCRIPT, str(n_items)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.torch_version: str = self._answer()

    def turn(self, batch_size: int, seconds: float, max_calls: int) -> Times:
        """As `take_turn`. RuntimeError with the child's last words when it has died."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([batch_size, seconds, max_calls]) + "\n")
        self._child.stdin.flush()
        return [(sampled, updated) for sampled, updated in self._answer()]

    def __enter__(self) -> TorchRL:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._log.close()
        self._folder.cleanup()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        answer = self._child.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"TorchRL's process ended:\n{self._log.read()[-2000:]}")
        return json.loads(answer)
