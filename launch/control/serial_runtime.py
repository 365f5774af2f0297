"""Runs every child as an object in this process: for debuggers, profilers and bit-exact tests.

A call runs when it is issued, so with one seed the order of all work is fixed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence

from actors.prior.backend import LocalPriorTransport
from actors.prior.local_engine import LocalPriorEngine
from actors.search.service import LocalSearchTransport, ServiceStats, make_service
from launch.control.runtime import Call, CallFailed, Child, Node, Resources, tells_of_memory
from learner.language.language_learner import TextSource
from learner.weight_server_actor import LocalWeightLink
from replay_service import (
    BatchSource,
    JointTextSource,
    LocalBatchSource,
    LocalJointBatchSource,
    LocalReanalysisSource,
    Replay,
    ReplayConfig,
    TextBatch,
)

IDLE_TURN_S = 0.05


class SerialRuntime:
    """One process, one thread, no Ray."""

    name = "serial"

    def now(self) -> float:
        return time.monotonic()

    def pack(self, members: Mapping[str, Resources]) -> None:
        """All are in one process."""

    def start(
        self, name: str, role: str, factory: type, kwargs: dict[str, object], resources: Resources
    ) -> Child:
        child = Child(name=name, role=role, handle=None)
        try:
            child.handle = factory(**kwargs)
        except (MemoryError, RuntimeError) as error:
            if not tells_of_memory(repr(error)):
                raise
            start = Call(child, "start", self.now(), 0.0, answer=None)
            raise CallFailed(start, repr(error), raised=True) from error
        return child

    def call(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float,
        with_payload: bool = False,
    ) -> Call:
        call = Call(child, method, self.now(), deadline_s, answer=None, args=args)
        try:
            answer = getattr(child.handle, method)(*args)
        except (MemoryError, RuntimeError) as error:
            # A child of its own would report this; any other error is better seen where it arose.
            if not tells_of_memory(repr(error)):
                raise
            call.answer = error
            return call
        if with_payload:
            call.answer, call.payload = answer
        else:
            call.answer = answer
        return call

    def wait(self, calls: Collection[Call], timeout_s: float) -> list[Call]:
        if not calls:  # a run that is paused
            time.sleep(min(timeout_s, IDLE_TURN_S))
        return list(calls)

    def value(self, call: Call) -> object:
        if isinstance(call.answer, BaseException):
            raise CallFailed(call, repr(call.answer), raised=True)
        return call.answer

    def restart(self, child: Child) -> None:
        raise RuntimeError(f"{child.name} is an object of this process and can't be restarted")

    def place_of(self, child: Child) -> Node:
        return Node("here", socket.gethostname(), holds_driver=True)

    def pid_of(self, child: Child) -> int:
        return os.getpid()

    def nodes(self) -> list[Node]:
        return [Node("here", socket.gethostname(), holds_driver=True)]

    def stop(self, child: Child) -> None:
        close = getattr(child.handle, "close", None)
        if close is not None:
            close()

    def shutdown(self) -> None:
        """Nothing to end: children are objects of this process."""


class LocalTextSource:
    """Examples for the language learner from a replay object of this process."""

    def __init__(self, replay: Replay, batch_size: int) -> None:
        self._replay = replay
        self._batch_size = batch_size

    def next(self) -> TextBatch | None:
        return self._replay.sample_text(self._batch_size)


class LocalSearchServer:
    """The search actor's stand-in: the same calls; a request never waits for others."""

    def __init__(self, *, wait_ms: float, **settings: object) -> None:
        """Takes what SearchActor takes."""
        self.service = make_service(**settings)

    def stats(self) -> ServiceStats:
        return self.service.stats()

    def ping(self) -> int:
        return os.getpid()


class LocalLinks:
    """Links between objects of one process."""

    prior_engine_class = LocalPriorEngine
    search_class = LocalSearchServer

    def weight_source(self, server: Child) -> LocalWeightLink:
        return LocalWeightLink(server.handle)

    def weight_sink(self, server: Child) -> LocalWeightLink:
        return LocalWeightLink(server.handle)

    def batch_source(
        self, replays: Sequence[Child], config: ReplayConfig, batch_size: int, seed: int
    ) -> BatchSource:
        if len(replays) == 1:
            return LocalBatchSource(replays[0].handle, batch_size)
        shards = [replay.handle for replay in replays]
        return LocalJointBatchSource(shards, config, batch_size, seed)

    def text_source(self, replays: Sequence[Child], batch_size: int, seed: int) -> TextSource:
        if len(replays) == 1:
            return LocalTextSource(replays[0].handle, batch_size)
        return JointTextSource([replay.handle for replay in replays], batch_size, seed)

    def reanalysis_source(self, replays: Sequence[Child]) -> LocalReanalysisSource:
        return LocalReanalysisSource([replay.handle for replay in replays])

    def prior_transport(
        self, engines: Sequence[Child], client: int, deadline_s: float
    ) -> LocalPriorTransport:
        return LocalPriorTransport(engines[client % len(engines)].handle)

    def search_transport(self, service: Child) -> LocalSearchTransport:
        return LocalSearchTransport(service.handle.service)
