"""Where a learner gets its batches: the interface, and the sources within one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from replay_service.config import ReplayConfig
from replay_service.joint import JointPlanner, ShareReply, ShareRequest, parts
from replay_service.reanalysis import ReanalysisRequest, TargetPatch
from replay_service.replay import Replay
from replay_service.targets import Batch, BatchHandles, Handles


class BatchSource(Protocol):
    """Where a learner gets its batches and sends their priorities."""

    def next(self) -> Batch: ...

    def update_priorities(
        self, handles: BatchHandles, priorities: NDArray[np.floating]
    ) -> None: ...


class LocalBatchSource:
    """BatchSource over a Replay of the same process."""

    def __init__(self, replay: Replay, batch_size: int) -> None:
        self._replay = replay
        self._batch_size = batch_size

    def next(self) -> Batch:
        return self._replay.sample(self._batch_size)

    def update_priorities(self, handles: BatchHandles, priorities: NDArray[np.floating]) -> None:
        assert isinstance(handles, Handles), "a batch of several shards"
        self._replay.update_priorities(handles, priorities)


class Shard(Protocol):
    """A shard of the same process."""

    def sample_share(self, request: ShareRequest) -> ShareReply: ...

    def update_priorities(
        self, handles: Handles, priorities: NDArray[np.floating] | Tensor
    ) -> int: ...


class LocalJointBatchSource:
    """BatchSource over several shards of the same process."""

    def __init__(
        self, shards: Sequence[Shard], config: ReplayConfig, batch_size: int, seed: int
    ) -> None:
        self._shards = shards
        self._planner = JointPlanner(config, batch_size, len(shards), seed)

    def next(self) -> Batch:
        """ValueError while no shard holds a position."""
        while True:
            if not self._planner.knows_mass:
                self._ask([self._planner.probe()] * len(self._shards))
            if not self._planner.knows_mass:
                raise ValueError(
                    f"none of {len(self._shards)} replay shards holds a trainable position to "
                    "sample from; add segments first"
                )
            plan = self._planner.plan()
            replies = self._ask([plan.request(shard) for shard in range(len(self._shards))])
            batch = self._planner.join(plan, replies)
            if batch is not None:
                return batch

    def update_priorities(
        self, handles: BatchHandles, priorities: NDArray[np.floating] | Tensor
    ) -> None:
        for part, values in parts(handles, priorities):
            self._shards[part.shard].update_priorities(part, values)

    def _ask(self, requests: Sequence[ShareRequest]) -> list[ShareReply]:
        replies = [
            shard.sample_share(request)
            for shard, request in zip(self._shards, requests, strict=True)
        ]
        for index, reply in enumerate(replies):
            self._planner.learn(index, reply)
        return replies


class LocalReanalysisSource:
    """ReanalysisSource over the shards of the same process; shard i is the i-th of `shards`."""

    def __init__(self, shards: Sequence[Replay]) -> None:
        self._shards = list(shards)
        self._turn = 0

    @property
    def n_shards(self) -> int:
        return len(self._shards)

    def next(self, n_segments: int) -> list[ReanalysisRequest]:
        shard = self._shards[self._turn]
        self._turn = (self._turn + 1) % len(self._shards)
        return shard.least_refreshed(n_segments)

    def patch(self, patches: Sequence[TargetPatch]) -> int:
        return sum(self._shards[patch.handles.shard].patch([patch]) for patch in patches)
