"""Replay behind Ray: the actor shell, and the clients of learner and reanalyser.

Batches pickle as numpy arrays (see `Batch.__reduce__`): Ray writes their bytes once into its object
store, and the client copies them out, so that no batch keeps the store pinned.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle

from replay_service.config import ReplayConfig
from replay_service.joint import ShareReply, ShareRequest
from replay_service.reanalysis import ReanalysisRequest, TargetPatch
from replay_service.replay import Replay
from replay_service.segment import GameSpec, Segment
from replay_service.statistics import AddReport
from replay_service.sum_tree import SumTree
from replay_service.targets import Batch, BatchHandles, Handles, TargetConfig, TextBatch

MAX_PENDING_UPDATES = 8

Answer = TypeVar("Answer")


class ReplayActor:
    """One replay shard as a process of its own; one call at a time, made by controller and learner.

    A plain class: the runtime decides whether it becomes a Ray actor or stays an object.
    """

    def __init__(
        self,
        config: ReplayConfig,
        targets: TargetConfig,
        spec: GameSpec,
        seed: int,
        shard: int = 0,
    ) -> None:
        torch.set_num_threads(1)
        # Nanoseconds since 1970 are more than any number of evictions before: a shard that Ray
        # restarted can't match handles of its predecessors.
        first_generation = time.time_ns() if _is_restarted() else 0
        self._replay = Replay(
            config, targets, spec, seed, shard=shard, first_generation=first_generation
        )
        _compile_kernels()

    def ping(self) -> int:
        """The process id, as a sign of life."""
        return os.getpid()

    def placement(self) -> str:
        """On which device frames, columns and sums lie, and why."""
        return f"{self._replay.device} ({self._replay.device_reason})"

    def add(self, segments: Sequence[Segment]) -> AddReport:
        """Store segments; pass the object reference itself: the bytes then come straight here."""
        return self._replay.add(segments)

    def sample(self, batch_size: int) -> Batch:
        return self._replay.sample(batch_size)

    def sample_share(self, request: ShareRequest) -> ShareReply:
        return self._replay.sample_share(request)

    def text_positions(self) -> int:
        return self._replay.text_positions()

    def sample_text(self, batch_size: int) -> TextBatch | None:
        return self._replay.sample_text(batch_size)

    def update_priorities(self, handles: Handles, priorities: NDArray[np.floating]) -> int:
        return self._replay.update_priorities(handles, priorities)

    def least_refreshed(self, n_segments: int) -> list[ReanalysisRequest]:
        return self._replay.least_refreshed(n_segments)

    def patch(self, patches: Sequence[TargetPatch]) -> int:
        return self._replay.patch(patches)

    def stats(self) -> dict[str, float]:
        return self._replay.stats()

    def save(self, folder: Path | str, previous: Path | None = None) -> None:
        self._replay.save(Path(folder), previous)

    def load(self, folder: Path | str) -> None:
        self._replay.load(Path(folder))


class Outbox:
    """Priorities on their way to one shard; once too many are unanswered, more are dropped."""

    def __init__(self, handle: ActorHandle[ReplayActor]) -> None:
        self._handle = handle
        self._unanswered: list[ray.ObjectRef[int]] = []
        self.n_dropped = 0

    def send(self, handles: Handles, priorities: NDArray[np.floating]) -> None:
        if self._unanswered:
            _, self._unanswered = ray.wait(
                self._unanswered,
                num_returns=len(self._unanswered),
                timeout=0,
                fetch_local=False,
            )
        if len(self._unanswered) >= MAX_PENDING_UPDATES:
            self.n_dropped += 1
            return
        self._unanswered.append(self._handle.update_priorities.remote(handles, priorities))


class RayBatchSource:
    """BatchSource over a ReplayActor that keeps `depth` samples in flight; lives in the learner.

    Priorities go back without waiting. Once MAX_PENDING_UPDATES of them are unanswered, further
    ones are dropped and counted: sampling then uses older priorities, which stays correct.
    """

    def __init__(
        self,
        handle: ActorHandle[ReplayActor],
        batch_size: int,
        depth: int = 2,
        *,
        timeout_s: float = 120.0,
    ) -> None:
        check_settings(batch_size, depth, timeout_s)
        self._handle = handle
        self._batch_size = batch_size
        self._depth = depth
        self._timeout_s = timeout_s
        self._ahead: deque[ray.ObjectRef[Batch]] = deque()
        self._outbox = Outbox(handle)

    @property
    def n_dropped_updates(self) -> int:
        return self._outbox.n_dropped

    def next(self) -> Batch:
        """The oldest batch in flight.

        TimeoutError if replay does not answer within `timeout_s`, RuntimeError if it is gone; an
        error that `Replay.sample` raised comes through as Ray's RayTaskError.
        """
        while len(self._ahead) <= self._depth:
            self._ahead.append(self._handle.sample.remote(self._batch_size))
        reference = self._ahead.popleft()
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            self._ahead.clear()
            raise TimeoutError(
                f"learner waited {self._timeout_s} s for replay to answer "
                f"sample({self._batch_size}); is the replay actor overloaded or hung?"
            ) from error
        except ray.exceptions.RayActorError as error:
            self._ahead.clear()
            raise RuntimeError(f"the replay actor is gone: {error}") from error
        except ray.exceptions.RayError:
            self._ahead.clear()  # what is in flight was asked for in the same state
            raise

    def update_priorities(self, handles: BatchHandles, priorities: NDArray[np.floating]) -> None:
        """Send priorities off; dropped and counted while too many are unanswered."""
        assert isinstance(handles, Handles), "a batch of several shards"
        self._outbox.send(handles, priorities)


def check_settings(batch_size: int, depth: int, timeout_s: float) -> None:
    if batch_size < 1 or depth < 1 or timeout_s <= 0:
        raise ValueError(
            f"batch_size and depth must be at least 1 and timeout_s positive, got "
            f"{batch_size}, {depth} and {timeout_s}"
        )


def _is_restarted() -> bool:
    """Whether this is a Ray actor that Ray started again after its process had died."""
    return ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed


class RayReanalysisSource:
    """ReanalysisSource over ReplayActors, which take turns; lives in the reanalyser.

    A shard that is gone or silent is passed over: it has nothing to search, and what was searched
    for it is lost, as if it had been evicted. Errors that a shard raises come through.
    """

    def __init__(
        self, handles: Sequence[ActorHandle[ReplayActor]], *, timeout_s: float = 120.0
    ) -> None:
        """handles: of every shard, shard i the i-th"""
        self._handles = list(handles)
        self._timeout_s = timeout_s
        self._turn = 0
        self.n_failures = 0  # calls without an answer

    @property
    def n_shards(self) -> int:
        return len(self._handles)

    def next(self, n_segments: int) -> list[ReanalysisRequest]:
        handle = self._handles[self._turn]
        self._turn = (self._turn + 1) % len(self._handles)
        return self._answers([handle.least_refreshed.remote(n_segments)], default=[])[0]

    def patch(self, patches: Sequence[TargetPatch]) -> int:
        by_shard: dict[int, list[TargetPatch]] = {}
        for patch in patches:
            by_shard.setdefault(patch.handles.shard, []).append(patch)
        calls = [self._handles[shard].patch.remote(group) for shard, group in by_shard.items()]
        return sum(self._answers(calls, default=0))

    def _answers(self, calls: Sequence[ray.ObjectRef[Answer]], default: Answer) -> list[Answer]:
        """Of every call, `default` where the shard does not give one."""
        answers = []
        for call in calls:
            try:
                answers.append(ray.get(call, timeout=self._timeout_s))
            except ray.exceptions.RayTaskError:
                raise
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                self.n_failures += 1
                answers.append(default)
        return answers


def _compile_kernels() -> None:
    """Compile (or load) the numba kernels now, so that no call pays for it later."""
    tree = SumTree(2)
    tree.set_span(0, 2, 1.0)
    tree.set_weights(np.zeros(1, dtype=np.int64), np.ones(1))
    tree.draw(1, np.random.default_rng(0))
