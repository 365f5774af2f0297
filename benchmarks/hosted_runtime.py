"""Simulated children behind real Ray calls: one asynchronous actor answers for all of them.

So the driver does all that it does for as many env actors, its Ray client included, on a machine
that has no room for their processes. Time is real; nothing fails.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import psutil
import ray

from benchmarks.simulated_children import Costs, SimulatedChildren
from benchmarks.simulated_runtime import Mark
from launch.control.ray_runtime import RayRuntime
from launch.control.runtime import Call, Child, Resources

MOST_CALLS = 100_000  # at once, of all children


class HostActor:
    """Answers a call when the child it is meant for would."""

    def __init__(self, costs: Costs, seed: int) -> None:
        self._children = SimulatedChildren(np.random.default_rng(seed), costs)
        self._free_at: dict[str, float] = {}

    async def work(self, name: str, method: str, *args: object) -> object:
        now = time.monotonic()
        work = self._children.work(name, os.getpid(), method, args)
        at = self._free_at[name] = max(now, self._free_at.get(name, now)) + work.seconds
        await asyncio.sleep(at - now)
        return (work.answer, work.payload) if method == "collect" else work.answer


@dataclass(frozen=True, slots=True)
class HostedMethod:
    """Called as a method of an actor handle is."""

    host: ray.actor.ActorHandle
    child: str
    method: str
    num_returns: int = 1

    def options(self, *, num_returns: int) -> HostedMethod:
        return HostedMethod(self.host, self.child, self.method, num_returns)

    def remote(self, *args: object) -> object:
        work = self.host.work.options(num_returns=self.num_returns)
        return work.remote(self.child, self.method, *args)


class HostedHandle:
    """Stands for the actor handle of one child."""

    def __init__(self, host: ray.actor.ActorHandle, child: str) -> None:
        self._host = host
        self._child = child
        self._actor_id = host._actor_id  # says where it is

    def __getattr__(self, method: str) -> HostedMethod:
        return HostedMethod(self._host, self._child, method)


class HostedRuntime(RayRuntime):
    """Keeps the marks of a SimulatedRuntime; `driver_s` is CPU of all threads of this process."""

    n_faults = 0

    def __init__(self, costs: Costs, seed: int) -> None:
        super().__init__(None, num_cpus=1, num_gpus=0)
        host = ray.remote(HostActor).options(max_concurrency=MOST_CALLS)
        self._host = host.remote(costs, seed)
        self._process = psutil.Process()
        self._began = time.monotonic()
        self._n_answers = self._n_turns = self._env_steps = 0
        self.marks: list[Mark] = []

    def now(self) -> float:
        return time.monotonic() - self._began

    def start(
        self, name: str, role: str, factory: type, kwargs: dict[str, object], resources: Resources
    ) -> Child:
        return Child(name=name, role=role, handle=HostedHandle(self._host, name))

    def call(self, child: Child, method: str, *args: object, **options: object) -> Call:
        if method == "collect":
            self._env_steps += args[0]
        return super().call(child, method, *args, **options)

    def wait(self, calls: Collection[Call], timeout_s: float) -> list[Call]:
        self._n_turns += 1
        if not self.marks or self.now() - self.marks[-1].at >= 1.0:
            times = self._process.cpu_times()
            cpu_s = times.user + times.system
            mark = Mark(self.now(), cpu_s, self._n_answers, self._n_turns, self._env_steps)
            self.marks.append(mark)
        ready = super().wait(calls, timeout_s)
        self._n_answers += len(ready)
        return ready

    def stop(self, child: Child) -> None:
        """It is none of its own."""
