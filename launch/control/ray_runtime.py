"""Runs every child as a Ray actor, on this machine or on a cluster."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray

# No public call tells where an actor is, or which nodes are to go, without Ray's dashboard.
from ray._private import ray_constants
from ray._private.state import state as ray_state
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from actors.prior.prior_engine_actor import PriorEngineActor, RayPriorTransport
from actors.search_actor import RaySearchTransport, SearchActor
from launch.control.descendants import descendants, end_all
from launch.control.runtime import Call, CallFailed, Child, Node, Resources
from learner.language.language_learner import TextSource
from learner.language.language_learner_actor import RayTextSource
from learner.ranks import RankLostError
from learner.weight_server_actor import RayWeightSink, RayWeightSource
from replay_service import BatchSource, JointTextSource, ReplayConfig
from replay_service.replay_actor import RayBatchSource, RayReanalysisSource
from replay_service.sharded_replay_actor import RayJointBatchSource, RayTextShard

OBJECT_STORE_BYTES = 512 * 1024 * 1024  # in-flight segments and batches are a few MB each
GATHER_S_PER_CALL = 10e-6  # some fifteen times what looking at one costs
END_GRACE_S = 5.0  # for children to end by themselves
_start_numbers = itertools.count(1)  # of the children of this process
HERE = "local"  # Ray's word for a new one on this machine


def address_to_join(address: str | None) -> str | None:
    """The cluster that a run with this `address` joins; None if it starts Ray on this machine."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    return None if address == HERE else address


@contextmanager
def _loopback_only() -> Iterator[None]:
    """A Ray that is started meanwhile listens on 127.0.0.1.

    On Linux it would take the machine's own address and listen on all, tokens or not, and it
    replaces a loopback address that it is given. This is its switch for Windows and macOS.
    """
    variable = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # for Ray's processes, which inherit it
    inherited = os.environ.get(variable)
    was_enabled, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    os.environ[variable] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was_enabled
        if inherited is None:
            del os.environ[variable]
        else:
            os.environ[variable] = inherited


class RayRuntime:
    """Attaches to `address`, or starts Ray on this machine for the time of the run."""

    name = "ray"

    def __init__(self, address: str | None, *, num_cpus: float, num_gpus: float) -> None:
        """`num_cpus` and `num_gpus` are what the run will ask for; a local Ray is told it has at
        least that, since a laptop runs more processes than it has cores.
        """
        address = address_to_join(address)
        self._group: PlacementGroup | None = None
        self._members: list[str] = []  # of the group, by bundle
        self._owns_ray = not ray.is_initialized()
        self._processes_before = descendants()
        if not self._owns_ray:
            return
        if address is not None:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
            return
        # Only this machine reaches it, so no token is needed; set explicitly because Ray's default
        # depends on files in the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._start_here(num_cpus, num_gpus)

    def _start_here(self, num_cpus: float, num_gpus: float) -> None:
        try:
            with _loopback_only():
                ray.init(
                    address=HERE,  # else it would join a Ray that somebody else runs here
                    num_cpus=max(os.cpu_count() or 1, int(num_cpus) + 1),
                    num_gpus=int(num_gpus) if num_gpus else None,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    configure_logging=False,
                )
        except BaseException:  # SystemExit too: while it starts, Ray has its own SIGTERM handler
            end_all(descendants() - self._processes_before, grace_s=0.0)
            raise

    def now(self) -> float:
        return time.monotonic()

    def pack(self, members: Mapping[str, Resources]) -> None:
        self._members = list(members)
        bundles = [{"CPU": m.num_cpus, "GPU": m.num_gpus} for m in members.values()]
        self._group = placement_group(
            [{name: amount for name, amount in b.items() if amount} for b in bundles], "PACK"
        )

    def _strategy(
        self, name: str, resources: Resources
    ) -> str | PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy:
        if name in self._members:
            return PlacementGroupSchedulingStrategy(self._group, self._members.index(name))
        if resources.node_id:
            return NodeAffinitySchedulingStrategy(
                resources.node_id, soft=True, _spill_on_unavailable=True
            )
        return "SPREAD" if resources.spreads else "DEFAULT"

    def start(
        self, name: str, role: str, factory: type, kwargs: dict[str, object], resources: Resources
    ) -> Child:
        env_vars = {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(), **resources.env_vars}
        remote = ray.remote(factory).options(
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            max_concurrency=resources.max_concurrency,
            max_restarts=-1 if resources.restartable else 0,
            max_task_retries=0,
            scheduling_strategy=self._strategy(name, resources),
            # Readable in Ray's lists. A replaced child would find its own name still taken.
            name=name if resources.restartable else f"{name}@{next(_start_numbers)}",
            runtime_env={"env_vars": env_vars},
        )
        return Child(name=name, role=role, handle=remote.remote(**kwargs))

    def call(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float,
        with_payload: bool = False,
    ) -> Call:
        remote = getattr(child.handle, method)
        call = Call(child, method, self.now(), deadline_s, answer=None, args=args)
        if with_payload:
            call.answer, call.payload = remote.options(num_returns=2).remote(*args)
        else:
            call.answer = remote.remote(*args)
        return call

    def wait(self, calls: Collection[Call], timeout_s: float) -> list[Call]:
        if not calls:
            time.sleep(timeout_s)
            return []
        refs = [call.answer for call in calls]
        # One answer is enough to go on: the rest is picked up in the next turn without waiting.
        # Ready is what is here: to fetch an answer from a node that is gone takes half a minute.
        ray.wait(refs, num_returns=1, timeout=timeout_s)
        # Ray looks at every call in flight whenever it is asked: with many, ask for many answers.
        time.sleep(len(refs) * GATHER_S_PER_CALL)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        ready = set(done)
        now = self.now()
        return [
            call for call in calls if call.answer in ready or now - call.issued_at > call.deadline_s
        ]

    def value(self, call: Call) -> object:
        overdue = self.now() - call.issued_at > call.deadline_s
        try:
            return ray.get(call.answer, timeout=0.0 if overdue else 30.0)
        except ray.exceptions.GetTimeoutError as error:
            cause = f"no answer within {call.deadline_s:.0f} s"
            raise CallFailed(call, cause) from error
        except RayActorError as error:
            is_away = isinstance(error, ActorUnavailableError)
            raise CallFailed(call, str(error).strip(), died=True, unavailable=is_away) from error
        except RayTaskError as error:
            is_lost = isinstance(error.cause, ObjectLostError)
            has_died = isinstance(error.cause, RankLostError)  # in part, so that it is replaced
            cause = str(error).strip()
            raise CallFailed(
                call, cause, raised=not has_died, died=has_died, lost_object=is_lost
            ) from error
        except RayError as error:
            raise CallFailed(call, repr(error), died=True) from error

    def restart(self, child: Child) -> None:
        ray.kill(child.handle, no_restart=False)

    def place_of(self, child: Child) -> Node | None:
        actor = ray_state.actor_table(child.handle._actor_id.hex())
        if not actor or not actor["Address"]["IPAddress"]:  # its NodeID is the owner's then
            return None
        address = actor["Address"]
        nodes = {node.node_id: node for node in self.nodes()}
        return nodes.get(address["NodeID"], Node(address["NodeID"], address["IPAddress"]))

    def pid_of(self, child: Child) -> int:
        actor = ray_state.actor_table(child.handle._actor_id.hex())
        return actor["Pid"] if actor else 0

    def nodes(self) -> list[Node]:
        draining = ray_state.get_draining_nodes()
        here = ray.get_runtime_context().get_node_id()
        return [
            Node(
                node["NodeID"],
                node["NodeManagerHostname"],
                is_draining=node["NodeID"] in draining,
                holds_driver=node["NodeID"] == here,
                num_cpus=node["Resources"].get("CPU", 0.0),
                num_gpus=node["Resources"].get("GPU", 0.0),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def stop(self, child: Child) -> None:
        ray.kill(child.handle, no_restart=True)

    def shutdown(self) -> None:
        if not self._owns_ray:
            if self._group is not None:
                remove_placement_group(self._group)
            return
        started = descendants() - self._processes_before
        ray.shutdown()
        end_all(started, grace_s=END_GRACE_S)  # Ray's agents may look for their head for a minute


def _python_path() -> str:
    """The checkout first, so that workers import this very code without an installed package."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([root, inherited]) if inherited else root


class RayLinks:
    """Links between Ray actors; each is a small client object that travels to its user."""

    prior_engine_class = PriorEngineActor
    search_class = SearchActor

    def weight_source(self, server: Child) -> RayWeightSource:
        return RayWeightSource(server.name)

    def weight_sink(self, server: Child) -> RayWeightSink:
        return RayWeightSink(server.handle)

    def batch_source(
        self, replays: Sequence[Child], config: ReplayConfig, batch_size: int, seed: int
    ) -> BatchSource:
        handles = [replay.handle for replay in replays]
        if len(handles) == 1:
            return RayBatchSource(handles[0], batch_size)
        return RayJointBatchSource(handles, config, batch_size, seed)

    def text_source(self, replays: Sequence[Child], batch_size: int, seed: int) -> TextSource:
        handles = [replay.handle for replay in replays]
        if len(handles) == 1:
            return RayTextSource(handles[0], batch_size)
        return JointTextSource([RayTextShard(handle) for handle in handles], batch_size, seed)

    def reanalysis_source(self, replays: Sequence[Child]) -> RayReanalysisSource:
        return RayReanalysisSource([replay.handle for replay in replays])

    def prior_transport(
        self, engines: Sequence[Child], client: int, deadline_s: float
    ) -> RayPriorTransport:
        handles = [engine.handle for engine in engines]
        return RayPriorTransport(*handles, home=client, deadline_s=deadline_s)

    def search_transport(self, service: Child) -> RaySearchTransport:
        return RaySearchTransport(service.handle)
