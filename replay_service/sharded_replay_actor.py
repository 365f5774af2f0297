"""Several replay actors as one source: batches over them all, whoever of them is lost.

Clients only; `joint.py` says how a batch is shared out and what its samples weigh.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from replay_service.config import ReplayConfig
from replay_service.joint import JointPlanner, Plan, ShareReply, parts
from replay_service.replay_actor import Outbox, ReplayActor, check_settings
from replay_service.targets import Batch, BatchHandles, TextBatch

PROBE_PERIOD_S = 1.0  # between two questions to a lost shard whether it is back
TEXT_TIMEOUT_S = 60.0


class RayJointBatchSource:
    """BatchSource over several ReplayActors that keeps `depth` batches in flight.

    All shards are asked at once. One that died, or is silent for `patience_s` after another has
    answered, is lost: the batch is drawn again from the others, and so are all in flight that had
    a share of it. It is asked now and then whether it is back. Lives in the learner.
    """

    def __init__(
        self,
        shards: Sequence[ActorHandle[ReplayActor]],
        config: ReplayConfig,
        batch_size: int,
        seed: int,
        depth: int = 2,
        *,
        timeout_s: float = 120.0,
        patience_s: float = 10.0,
    ) -> None:
        check_settings(batch_size, depth, min(timeout_s, patience_s))
        self._shards = shards
        self._planner = JointPlanner(config, batch_size, len(shards), seed)
        self._depth = depth
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._ahead: deque[tuple[Plan, dict[int, ray.ObjectRef[ShareReply]]]] = deque()
        self._probes: dict[int, ray.ObjectRef[ShareReply]] = {}  # one per lost shard
        self._probed_at = 0.0
        self._outboxes = [Outbox(handle) for handle in shards]

    @property
    def n_dropped_updates(self) -> int:
        """Priorities of one shard's part of a batch that were dropped."""
        return sum(outbox.n_dropped for outbox in self._outboxes)

    @property
    def lost(self) -> frozenset[int]:
        """Shards that are not asked for rows now."""
        return frozenset(self._probes)

    def next(self) -> Batch:
        """The oldest batch in flight.

        ValueError while no shard holds a position, TimeoutError if none answers within
        `timeout_s`, RuntimeError if all are gone; an error that a shard raised comes through as
        Ray's RayTaskError.
        """
        while True:
            self._look_for_lost()
            if not self._planner.knows_mass:
                self._find_mass()
            while len(self._ahead) <= self._depth and self._planner.knows_mass:
                plan = self._planner.plan()
                self._ahead.append((plan, self._ask(plan)))
            if not self._ahead:
                continue
            plan, asked = self._ahead.popleft()
            found = self._collect(asked)
            batch = self._planner.join(plan, [found.get(s) for s in range(len(self._shards))])
            if batch is not None:
                return batch

    def update_priorities(self, handles: BatchHandles, priorities: NDArray[np.floating]) -> None:
        """Send priorities to where they belong, as RayBatchSource does."""
        for part, values in parts(handles, priorities):
            assert isinstance(values, np.ndarray)
            self._outboxes[part.shard].send(part, values)

    def _ask(self, plan: Plan) -> dict[int, ray.ObjectRef[ShareReply]]:
        return {
            index: handle.sample_share.remote(plan.request(index))
            for index, handle in enumerate(self._shards)
            if index not in self._probes
        }

    def _collect(self, asked: dict[int, ray.ObjectRef[ShareReply]]) -> dict[int, ShareReply]:
        """What came; shards from which nothing came are lost from now on."""
        replies: dict[int, ShareReply] = {}
        ready = self._wait(list(asked.values()))
        for index, reference in asked.items():
            reply = self._read(reference) if reference in ready else None
            if reply is None:
                self._lose(index)
            else:
                self._planner.learn(index, reply)
                replies[index] = reply
        return replies

    def _wait(self, references: list[ray.ObjectRef[ShareReply]]) -> set[ray.ObjectRef[ShareReply]]:
        """Those that are answered soon after the first."""
        ray.wait(references, num_returns=1, timeout=self._timeout_s)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=self._patience_s)
        return set(ready)

    def _read(self, reference: ray.ObjectRef[ShareReply]) -> ShareReply | None:
        """None if the shard died instead of answering."""
        try:
            return ray.get(reference, timeout=self._timeout_s)
        except ray.exceptions.RayTaskError:
            self._ahead.clear()  # what is in flight was asked for in the same state
            raise
        except ray.exceptions.RayError:
            return None

    def _lose(self, shard: int) -> None:
        self._planner.lose(shard)
        self._probes[shard] = self._probe(shard)
        self._ahead = deque(entry for entry in self._ahead if not entry[0].shares[shard])

    def _probe(self, shard: int) -> ray.ObjectRef[ShareReply]:
        self._probed_at = time.monotonic()
        return self._shards[shard].sample_share.remote(self._planner.probe())

    def _look_for_lost(self) -> None:
        """Takes lost shards back that answer again; never waits."""
        if not self._probes:
            return
        waiting = list(self._probes.values())
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        may_ask = time.monotonic() - self._probed_at >= PROBE_PERIOD_S
        for shard in [s for s, reference in self._probes.items() if reference in ready]:
            reply = self._read(self._probes[shard])
            if reply is not None:
                del self._probes[shard]
                self._planner.learn(shard, reply)
            elif may_ask:
                self._probes[shard] = self._probe(shard)

    def _find_mass(self) -> None:
        """Asks all shards until one holds positions; raises what `next` says otherwise."""
        self._ahead.clear()
        deadline = time.monotonic() + self._timeout_s
        n_shards = len(self._shards)
        for shard in set(range(n_shards)) - set(self._probes):
            self._probes[shard] = self._probe(shard)
        while True:
            ready = self._wait(list(self._probes.values()))
            n_silent = len(self._probes) - len(ready)
            self._look_for_lost()
            if self._planner.knows_mass:
                return
            if n_silent == 0:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"learner waited {self._timeout_s} s for a replay shard with positions; "
                    f"{n_silent} of {n_shards} did not answer: are they overloaded or hung?"
                )
        if len(self._probes) == n_shards:
            raise RuntimeError(f"all {n_shards} replay shards are gone")
        raise ValueError(
            f"none of {n_shards} replay shards holds a trainable position to sample from; add "
            "segments first"
        )


class RayTextShard:
    """A shard as JointTextSource asks it; one that is gone holds no text."""

    def __init__(self, handle: ActorHandle[ReplayActor]) -> None:
        self._handle = handle

    def text_positions(self) -> int:
        answer: ray.ObjectRef[int] = self._handle.text_positions.remote()
        try:
            return ray.get(answer, timeout=TEXT_TIMEOUT_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return 0

    def sample_text(self, batch_size: int) -> TextBatch | None:
        answer: ray.ObjectRef[TextBatch | None] = self._handle.sample_text.remote(batch_size)
        try:
            return ray.get(answer, timeout=TEXT_TIMEOUT_S)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None
