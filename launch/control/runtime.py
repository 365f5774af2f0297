"""How the controller starts children and calls them; implemented with Ray and in one process.

A call is answered once. Nothing here blocks except `wait` and `value`, which have time limits, so
the controller is one loop over ready calls in both runtimes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from replay_service import ReplayConfig


@dataclass(frozen=True, slots=True)
class Resources:
    """What one child asks of the machine."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    max_concurrency: int = 1
    restartable: bool = False  # Ray's out-of-memory killer takes these first
    spreads: bool = False  # rather on a node with few of its kind
    node_id: str = ""  # rather on this node
    env_vars: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Child:
    """One started process (or object, in the serial runtime); equal to itself only."""

    name: str
    role: str
    handle: object
    pid: int = 0
    node_id: str = ""  # where it answered last
    host: str = ""

    @property
    def index(self) -> int:
        """Which of its kind it is, where there may be several, by its name."""
        return int(self.name.rpartition("-")[2])


@dataclass(frozen=True, slots=True)
class Node:
    """One living machine, or what Ray takes for one."""

    node_id: str
    host: str
    is_draining: bool = False  # it is about to go away
    holds_driver: bool = False
    num_cpus: float = 0.0  # in all, whether free or not
    num_gpus: float = 0.0


@dataclass(slots=True, eq=False)
class Call:
    """One call in flight, equal to itself only.

    payload: a second return value that is only ever forwarded
    """

    child: Child
    method: str
    issued_at: float
    deadline_s: float
    answer: object
    args: tuple[object, ...] = ()
    payload: object = None


OUT_OF_MEMORY = (
    "OutOfMemoryError",  # torch's, and Ray's where its own killer ended the process
    "MemoryError",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",  # not the allocator's: where a process opens the device
    "CUBLAS_STATUS_ALLOC_FAILED",  # the same, where it makes its first matrix product
    "running low on memory",  # Ray's killer, in the words of a dead actor
)


MEMORY_SETTINGS = {  # what shrinks a child, by its role
    "learner": "raise learner.accumulate (parts of a batch), then lower learner.batch_size",
    "env_actor": "lower acting.envs_per_actor",
}


def tells_of_memory(cause: str) -> bool:
    """Whether the text of an error says that memory ran out."""
    return any(words in cause for words in OUT_OF_MEMORY)


class CallFailed(RuntimeError):
    """The child raised, died or, neither of them, did not answer in time."""

    def __init__(
        self,
        call: Call,
        cause: str,
        *,
        died: bool = False,
        raised: bool = False,
        lost_object: bool = False,
        unavailable: bool = False,
    ) -> None:
        """lost_object: what the call needed went with the node that held it; unavailable: the
        process died, and another is about to take its place by itself
        """
        hint = ""
        if tells_of_memory(cause) and call.child.role in MEMORY_SETTINGS:
            hint = (
                f"\nout of memory: {MEMORY_SETTINGS[call.child.role]}; early in a run "
                "--auto-memory true does that by itself"
            )
        super().__init__(f"{call.child.name}.{call.method} failed: {cause}{hint}")
        self.call = call
        self.cause = cause
        self.died = died
        self.raised = raised
        self.lost_object = lost_object
        self.unavailable = unavailable

    @property
    def is_out_of_memory(self) -> bool:
        return tells_of_memory(self.cause)


class Runtime(Protocol):
    """Starts children, calls them, waits for answers."""

    name: str

    def now(self) -> float:
        """Seconds of the clock by which the controller counts deadlines, periods and back-offs."""

    def pack(self, members: Mapping[str, Resources]) -> None:
        """Keeps room for the children of these names, on one node if one has it, for the run.

        Children of these names that are started from now on go there, successors too.
        """

    def start(
        self, name: str, role: str, factory: type, kwargs: dict[str, object], resources: Resources
    ) -> Child:
        """Starts `factory(**kwargs)` as a child. Constructor failures surface on the first call."""

    def call(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float,
        with_payload: bool = False,
    ) -> Call:
        """Issues a call. With `with_payload` the method returns (answer, payload)."""

    def wait(self, calls: Collection[Call], timeout_s: float) -> list[Call]:
        """Calls that are answered or failed, in a stable order; [] after `timeout_s`."""

    def value(self, call: Call) -> object:
        """The answer of a ready call. Raises CallFailed."""

    def restart(self, child: Child) -> None:
        """Kills a restartable child; it comes back by itself behind the same handle."""

    def place_of(self, child: Child) -> Node | None:
        """Where `child` is or starts; None while no node has room for it."""

    def pid_of(self, child: Child) -> int:
        """Its process, which may still be starting; 0 while there is none."""

    def nodes(self) -> list[Node]:
        """All living nodes."""

    def stop(self, child: Child) -> None:
        """Ends a child at once; calls in flight fail."""

    def shutdown(self) -> None:
        """Ends everything this runtime started."""


class Links(Protocol):
    """The client objects through which children reach each other, in one runtime."""

    prior_engine_class: type
    search_class: type

    def weight_source(self, server: Child) -> object: ...

    def weight_sink(self, server: Child) -> object: ...

    def batch_source(
        self, replays: Sequence[Child], config: ReplayConfig, batch_size: int, seed: int
    ) -> object: ...

    def text_source(self, replays: Sequence[Child], batch_size: int, seed: int) -> object: ...

    def reanalysis_source(self, replays: Sequence[Child]) -> object: ...

    def prior_transport(
        self, engines: Sequence[Child], client: int, deadline_s: float
    ) -> object: ...

    def search_transport(self, service: Child) -> object: ...
