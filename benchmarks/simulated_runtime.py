"""The runtime of a simulated run: thousands of children, none of them a process, in virtual time.

The controller can't tell it from another: calls queue up at each child, answers are pickled as
between processes, children die, hang and lose their nodes. Time passes while the controller waits,
and, where its own work is to count, as fast as that takes.
"""

from __future__ import annotations

import heapq
import math
import pickle
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from benchmarks.simulated_children import SimulatedChildren
from launch.control.runtime import Call, CallFailed, Child, Node, Resources

SECONDS_PER_HOUR = 3600.0
HEAD = "node-0"  # of the driver, and of all that is not an env actor; it never goes


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, at random times; 0 hours is never."""

    process_hours: float = 10.0  # mean time until a process dies or hangs
    hang_share: float = 0.1  # of these, those that hang
    node_hours: float = 20.0  # mean time until a node is preempted, with all on it
    notice_s: float = 120.0  # that a node is known to go beforehand
    mortal: tuple[str, ...] = ("env_actor", "evaluator", "monitor", "weight_server", "replay")


@dataclass(slots=True)
class Machine:
    """One node."""

    node_id: str
    goes_at: float = math.inf
    n_processes: int = 0


@dataclass(slots=True)
class Process:
    """One child, and where it comes back behind its handle, one process after the other."""

    name: str
    role: str
    machine: Machine
    comes_back: bool
    pid: int
    free_at: float  # when it has done all that it was asked for
    ends_at: float = math.inf
    hangs: bool = False  # from `ends_at` on, in place of dying
    is_stopped: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """In place of an answer."""

    cause: str
    died: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """Sums since the beginning, at one moment."""

    at: float  # virtual seconds
    driver_s: float  # CPU
    n_answers: int
    n_turns: int
    env_steps: int  # asked for


@dataclass(slots=True)
class SimulatedRuntime:
    """Implements Runtime."""

    children: SimulatedChildren
    rng: np.random.Generator
    faults: Faults
    n_nodes: int
    counts_driver_time: bool  # else the controller's work takes no time, and a run repeats
    name: str = "simulated"
    n_answers: int = 0
    n_turns: int = 0
    n_faults: int = 0
    marks: list[Mark] = field(default_factory=list)
    _now: float = 0.0
    _simulating_s: float = 0.0  # CPU of this module
    _left_at: float = 0.0  # CPU clock, when the controller was last given control
    _due: list[tuple[float, int, Call]] = field(default_factory=list)  # heap
    _ready: dict[Call, None] = field(default_factory=dict)  # due and not yet taken
    _numbers: count[int] = field(default_factory=count)
    _machines: list[Machine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left_at = time.thread_time()
        self._machines = [Machine(HEAD)]
        self._machines += [self._new_machine() for _ in range(self.n_nodes)]

    # ------------------------------------------------------------------ time

    def now(self) -> float:
        return self._now

    @property
    def driver_s(self) -> float:
        """CPU seconds of this thread that were not spent here."""
        return time.thread_time() - self._simulating_s

    def _enter(self) -> float:
        began = time.thread_time()
        if self.counts_driver_time:
            self._now += began - self._left_at
        return began

    def _leave(self, began: float) -> None:
        self._left_at = time.thread_time()
        self._simulating_s += self._left_at - began

    # ------------------------------------------------------------------ the runtime's face

    def pack(self, members: Mapping[str, Resources]) -> None:
        """All but env actors are on the first machine."""

    def start(
        self, name: str, role: str, factory: type, kwargs: dict[str, object], resources: Resources
    ) -> Child:
        began = self._enter()
        machine = self._machines[0] if role != "env_actor" else self._emptiest()
        machine.n_processes += 1
        process = Process(name, role, machine, resources.restartable, 0, 0.0)
        self._begin(process, self._now)
        self._leave(began)
        return Child(name=name, role=role, handle=process)

    def call(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float,
        with_payload: bool = False,
    ) -> Call:
        began = self._enter()
        call = Call(child, method, self._now, deadline_s, answer=None, args=args)
        at = self._schedule(child.handle, call, pickle.loads(pickle.dumps(args)))
        heapq.heappush(self._due, (at, next(self._numbers), call))
        self._leave(began)
        return call

    def wait(self, calls: Collection[Call], timeout_s: float) -> list[Call]:
        began = self._enter()
        self.n_turns += 1
        self._mark()
        ready = self._until_ready(calls, self._now + timeout_s)
        self.n_answers += len(ready)
        self._leave(began)
        return ready

    def value(self, call: Call) -> object:
        if isinstance(call.answer, Failure):
            raise CallFailed(call, call.answer.cause, died=call.answer.died)
        return pickle.loads(call.answer)

    def restart(self, child: Child) -> None:
        process = child.handle
        self._begin(process, self._now)

    def place_of(self, child: Child) -> Node:
        return _node(child.handle.machine, self._now, self.faults.notice_s)

    def pid_of(self, child: Child) -> int:
        return child.handle.pid

    def nodes(self) -> list[Node]:
        began = self._enter()
        for index, machine in enumerate(self._machines):
            if machine.goes_at <= self._now:
                self._machines[index] = self._new_machine()
        nodes = [_node(machine, self._now, self.faults.notice_s) for machine in self._machines]
        self._leave(began)
        return nodes

    def stop(self, child: Child) -> None:
        process = child.handle
        process.machine.n_processes -= not process.is_stopped
        process.is_stopped = True

    def shutdown(self) -> None:
        """Nothing was started."""

    # ------------------------------------------------------------------ what happens

    def _schedule(self, process: Process, call: Call, args: tuple[object, ...]) -> float:
        """Decides what becomes of `call`, and when; returns that time."""
        while process.comes_back and process.ends_at <= self._now and not process.hangs:
            self._begin(process, process.ends_at)
        overdue_at = call.issued_at + call.deadline_s
        if process.is_stopped:
            call.answer = Failure("the process was stopped", died=True)
            return self._now
        starts_at = max(self._now, process.free_at)
        work = None
        if starts_at < min(process.ends_at, overdue_at):
            work = self.children.work(process.name, process.pid, call.method, args)
            process.free_at = starts_at + work.seconds
        if process.ends_at <= min(process.free_at, overdue_at) and not process.hangs:
            call.answer = Failure("the process died", died=True)
            return max(self._now, process.ends_at)
        if work is None or process.free_at > min(process.ends_at, overdue_at):
            call.answer = Failure(f"no answer within {call.deadline_s:.0f} s", died=False)
            return overdue_at
        call.answer, call.payload = pickle.dumps(work.answer), work.payload
        return process.free_at

    def _begin(self, process: Process, at: float) -> None:
        """A process comes into being, with its end."""
        faults = self.faults
        process.pid = next(self._numbers) + 1
        process.free_at = at + self.children.costs.start_s
        process.hangs = False
        process.ends_at = math.inf
        if process.role in faults.mortal and faults.process_hours:
            process.ends_at = at + self.rng.exponential(faults.process_hours * SECONDS_PER_HOUR)
            process.hangs = bool(self.rng.random() < faults.hang_share)
        if process.machine.goes_at < process.ends_at:
            process.ends_at, process.hangs = process.machine.goes_at, False

    def _until_ready(self, calls: Collection[Call], until: float) -> list[Call]:
        while True:
            while self._due and self._due[0][0] <= self._now:
                call = heapq.heappop(self._due)[2]
                self._ready[call] = None
            if len(calls) > 1:
                ready = [call for call in self._ready if call in calls]
                self._ready.clear()  # what nobody waits for was given up
            else:
                ready = [call for call in calls if call in self._ready]
                for call in ready:
                    del self._ready[call]
            if ready:
                self.n_faults += sum(isinstance(call.answer, Failure) for call in ready)
                return ready
            next_at = self._due[0][0] if self._due else math.inf
            if next_at > until:
                self._now = max(self._now, until)
                return []
            self._now = max(self._now, next_at)

    def _mark(self) -> None:
        if not self.marks or self._now - self.marks[-1].at >= 1.0:
            done = self.children.env_steps
            mark = Mark(self._now, self.driver_s, self.n_answers, self.n_turns, done)
            self.marks.append(mark)

    def _new_machine(self) -> Machine:
        machine = Machine(f"node-{next(self._numbers) + 1}")
        if self.faults.node_hours:
            mean = self.faults.node_hours * SECONDS_PER_HOUR
            machine.goes_at = self._now + self.rng.exponential(mean)
        return machine

    def _emptiest(self) -> Machine:
        """Of the nodes that stay for now, the one with the fewest processes."""
        late = self._now + self.faults.notice_s
        staying = [m for m in self._machines[1:] if m.goes_at > late] or self._machines[1:]
        return min(staying, key=lambda machine: machine.n_processes)


def _node(machine: Machine, now: float, notice_s: float) -> Node:
    is_draining = machine.goes_at - notice_s <= now
    is_head = machine.node_id == HEAD
    return Node(machine.node_id, machine.node_id, is_draining=is_draining, holds_driver=is_head)
