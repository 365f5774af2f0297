"""What follows when a child fails: it is replaced, it comes back, or the run ends."""

from __future__ import annotations

import time
from math import inf

from launch.control.call_book import CallBook, RunFailed
from launch.control.checkpoint import CheckpointStore
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.runtime import Call, CallFailed, Child, Runtime
from launch.control.shards import ReplayShards

START_BUDGET_S = 300.0  # importing, building and compiling take long on a small machine
PING_AFTER_S = 20.0
REPLACEABLE = ("env_actor", "evaluator", "monitor", "reanalyser", "learner")
# Others hold their handle, so they come back behind it; replay only while other shards hold data.
RESTARTABLE = ("prior_engine", "search", "replay", "weight_server")


class Supervisor:
    """Owned by the controller, called from its one thread."""

    def __init__(
        self,
        runtime: Runtime,
        fleet: Fleet,
        calls: CallBook,
        shards: ReplayShards,
        reporter: Reporter,
        progress: Progress,
        checkpoints: CheckpointStore,
        max_restarts: int,
    ) -> None:
        self._runtime = runtime
        self._fleet = fleet
        self._calls = calls
        self._shards = shards
        self._reporter = reporter
        self._progress = progress
        self._checkpoints = checkpoints
        self._max_restarts = max_restarts
        self._restarts: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}  # shards that have not come back yet
        self._back_at: dict[str, float] = {}  # shards that have, when they last did

    def recover(self, failure: CallFailed) -> list[Call]:
        """Sees to a successor of the child that failed; returns the calls that failed with it.

        Raises RunFailed where there can be none.
        """
        child = failure.call.child
        if child.role == "replay":
            self._recover_shard(failure)
            return []
        self._note(failure)
        lost = [*self._calls.drop(child), failure.call]
        successor = self._successor(failure)
        self._calls.issue(successor, "ping", deadline_s=START_BUDGET_S)
        if child.role == "learner":
            self._restore(successor)
        return lost

    def weight_server_answers(self) -> None:
        """It is another process than before, and so empty: the learner publishes again."""
        self._calls.issue(self._fleet.learner, "publish", self._progress.weight_version)

    def monitor_answers(self) -> None:
        """It is another process than before: it hears again whom there is to watch."""
        for child in self._fleet.children():
            if child.pid:
                self._calls.issue(self._fleet.monitor, "watch", child.name, child.pid)

    def _restore(self, learner: Child) -> None:
        """Gives a new learner what the last checkpoint has; it publishes above all before.

        The controller's count of updates goes on: it counts work done, and some of it is lost.
        """
        source = self._checkpoints.latest()
        if source is not None:
            self._calls.issue(learner, "load", source / "learner", deadline_s=START_BUDGET_S)
        self._calls.issue(
            learner, "publish", self._progress.weight_version, deadline_s=START_BUDGET_S
        )
        self._reporter.event("learner_replaced", source="" if source is None else str(source))

    def shard_answers(self, call: Call, pid: int) -> None:
        """A shard of replay answered a ping that was lost, or is another process than before."""
        child = call.child
        if self._shards.is_serving(child):  # nobody waited for it when it died
            cause = f"died between two calls, and came back as process {pid}"
            self._note(CallFailed(call, cause, died=True))
            self._shards.lose(child)
        self._lost_at.pop(child.name, None)
        self._back_at[child.name] = time.monotonic()
        self._shards.welcome(child)
        self._reporter.event("replay_shard_ready", child=child.name, pid=pid)

    def ping_quiet_children(self) -> None:
        """Asks those for a sign of life that nobody had a reason to call, and lost shards."""
        ages = {beat.process: beat.age_s for beat in self._reporter.heartbeats()}
        for child in self._fleet.children():
            is_quiet = ages.get(child.name, 0.0) > PING_AFTER_S or child.name in self._lost_at
            if is_quiet and not self._calls.n_in_flight(child=child):
                self._calls.issue(child, "ping")

    def _recover_shard(self, failure: CallFailed) -> None:
        """Segments in flight are sent elsewhere one by one, as their calls fail: those that Ray
        hands to the restarted process instead are stored there.
        """
        child = failure.call.child
        # While Ray starts a successor calls may fail at once, and those from before its return may
        # fail after it: neither is a second death.
        is_starting = time.monotonic() - self._lost_at.get(child.name, -inf) < START_BUDGET_S
        is_from_before = failure.call.issued_at < self._back_at.get(child.name, -inf)
        is_known = is_starting or (failure.died and is_from_before)
        if failure.raised or not is_known:
            self._note(failure)
            self._lost_at[child.name] = time.monotonic()
            self._shards.lose(child)
            self._calls.drop(child, keep="add")
            self._calls.issue(self._successor(failure), "ping", deadline_s=START_BUDGET_S)
        self._shards.send_again(failure.call)

    def _note(self, failure: CallFailed) -> None:
        """Raises RunFailed if the run can't go on."""
        child = failure.call.child
        self._reporter.event(
            "child_failed", child=child.name, method=failure.call.method, cause=failure.cause[-400:]
        )
        if not self._may_fail(failure):
            raise RunFailed(
                f"{failure}\nthe run can't go on without its {child.role}; "
                "the same command goes on from the last checkpoint"
            )
        n_restarts = self._restarts[child.name] = self._restarts.get(child.name, 0) + 1
        if n_restarts > self._max_restarts:
            raise RunFailed(
                f"{child.name} failed {n_restarts} times, last: {failure}\n"
                "raise control.max_restarts if this is expected"
            )
        self._progress.restarts += 1

    def _may_fail(self, failure: CallFailed) -> bool:
        child = failure.call.child
        if child.role == "replay":
            # What one shard refuses, the others would refuse as well.
            return not failure.raised and self._shards.may_lose(child)
        if child.role == "learner" and failure.raised:
            return False  # the next one would raise it again
        return child.role in REPLACEABLE + RESTARTABLE

    def _successor(self, failure: CallFailed) -> Child:
        child = failure.call.child
        if child.role not in RESTARTABLE:
            self._runtime.stop(child)
            return self._fleet.replace(child)
        if not failure.died:
            self._runtime.restart(child)
        return child
