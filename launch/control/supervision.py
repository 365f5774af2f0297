"""What follows when a child fails: another takes its place, it comes back, or the run ends."""

from __future__ import annotations

from math import inf

from launch.config import Config
from launch.control.call_book import CallBook, RunFailed
from launch.control.checkpoint import CheckpointStore
from launch.control.child_health import UP, State
from launch.control.fleet import Fleet
from launch.control.monitor_link import MonitorLink
from launch.control.node_watch import NodeWatch
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.room import EXPENDABLE, Room
from launch.control.roster import Roster
from launch.control.runtime import Call, CallFailed, Child, Runtime
from launch.control.shards import ReplayShards

START_BUDGET_S = 300.0  # importing, building and compiling take long on a small machine
PING_AFTER_S = 20.0
REPLACEABLE = ("env_actor", "evaluator", "monitor", "reanalyser", "learner", "language_learner")
# Others hold their handle, so they come back behind it; replay only while other shards hold data.
RESTARTABLE = ("prior_engine", "search", "replay", "weight_server")
SAVERS = ("learner", "language_learner")  # no checkpoint without what they hold


class Supervisor:
    """Owned by the controller, called from its one thread."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        fleet: Fleet,
        calls: CallBook,
        roster: Roster,
        shards: ReplayShards,
        reporter: Reporter,
        progress: Progress,
        checkpoints: CheckpointStore,
    ) -> None:
        self._runtime = runtime
        self._fleet = fleet
        self._calls = calls
        self._roster = roster
        self._shards = shards
        self._reporter = reporter
        self._progress = progress
        self._checkpoints = checkpoints
        self._monitor = MonitorLink(runtime, fleet, calls, roster, START_BUDGET_S)
        self._nodes = NodeWatch(runtime, fleet, roster, reporter)
        self._room = Room(runtime, fleet, roster, reporter, config.control.min_actors)
        self._lost_at: dict[str, float] = {}  # shards that have not come back yet
        self._back_at: dict[str, float] = {}  # shards that have, when they last did

    # ------------------------------------------------------------------ every turn

    def begin(self) -> None:
        """Waits for a first answer of every child; the fleet has been started."""
        self._roster.begin()
        for child in self._fleet.children():
            self._calls.issue(child, "ping", deadline_s=START_BUDGET_S)

    def turn(self) -> None:
        """Does what is due."""
        for call in self._calls.late():
            self._roster.overdue(call.child)
        for child in self._roster.due():
            self._bring_back(child)
        self._nodes.poll()

    def look_around(self) -> None:
        """Once in a while: who is silent, and who waits for room."""
        self._ping_quiet_children()
        self._room.look_around()

    # ------------------------------------------------------------------ failures

    def recover(self, failure: CallFailed) -> list[Call]:
        """Sees to a successor of the child that failed; returns the calls that failed with it.

        Raises RunFailed where there can be none.
        """
        child = failure.call.child
        if failure.lost_object and failure.call.method == "add":
            # It was held where it was made, and went with that node: replay did nothing wrong.
            self._shards.forget(failure.call)
            self._reporter.event("segments_lost", cause=failure.cause[-400:])
            return []
        if child.role == "replay":
            self._recover_shard(failure)
            return []
        if self._roster.state(child) not in (*UP, State.STARTING):  # known already
            return [*self._calls.drop(child), failure.call]
        if self._is_on_its_way(failure):
            if failure.call.method == "ping":
                self._calls.issue(child, "ping", deadline_s=START_BUDGET_S)
            return [failure.call]
        is_silent = not failure.died and not failure.raised
        is_starting = self._roster.state(child) is State.STARTING
        if is_starting and is_silent and self._room.tell_if_waiting(child):
            self._room.require(child, START_BUDGET_S)
            self._calls.issue(child, "ping", deadline_s=START_BUDGET_S)
            return []
        self._note(failure)
        lost = [*self._calls.drop(child), failure.call]
        self._end(child, has_died=failure.died)
        return lost

    def _is_on_its_way(self, failure: CallFailed) -> bool:
        """Its death was noted, and calls fail at once until Ray has started its successor."""
        child = failure.call.child
        return (
            failure.unavailable
            and self._roster.state(child) is State.STARTING
            and self._roster.n_failures(child) > 0
            and self._roster.seconds_in_state(child) < START_BUDGET_S
        )

    def _note(self, failure: CallFailed) -> None:
        """Raises RunFailed if the run can't go on."""
        child = failure.call.child
        self._reporter.event(
            "child_failed",
            child=child.name,
            method=failure.call.method,
            host=child.host,
            cause=failure.cause[-400:],
        )
        if not self._may_fail(failure):
            raise RunFailed(
                f"{_with_host(child, failure)}\nthe run can't go on without its {child.role}; "
                "the same command goes on from the last checkpoint"
            )
        self._roster.failed(child)
        if self._roster.state(child) is State.QUARANTINED:
            self._give_up(failure)
        else:
            self._progress.restarts += 1

    def _may_fail(self, failure: CallFailed) -> bool:
        child = failure.call.child
        if child.role == "replay":
            # What one shard refuses, the others would refuse as well.
            return not failure.raised and self._shards.may_lose(child)
        if child.role in SAVERS and failure.raised:
            return False  # the next one would raise it again
        return child.role in REPLACEABLE + RESTARTABLE

    def _give_up(self, failure: CallFailed) -> None:
        """After one failure too many: the run goes on without the child, or ends."""
        child = failure.call.child
        shortage = self._room.shortage if child.role == "env_actor" else ""
        if (
            child.role in EXPENDABLE
            or (child.role == "env_actor" and not shortage)
            or (child.role == "prior_engine" and self._has_other_engines)
        ):
            self._reporter.event(
                "child_quarantined",
                child=child.name,
                host=child.host,
                failures=self._roster.n_failures(child),
                env_actors_left=self._room.n_env_actors_left,
            )
            return
        raise RunFailed(
            f"{child.name} failed {self._roster.n_failures(child)} times within an hour, last: "
            f"{_with_host(child, failure)}\n{shortage}{'; ' if shortage else ''}"
            "raise control.max_restarts if this is expected; the same command goes on from the "
            "last checkpoint"
        )

    @property
    def _has_other_engines(self) -> bool:
        """Whether a prior engine is left that does not stay out."""
        states = [self._roster.state(engine) for engine in self._fleet.prior_engines]
        return any(state is not State.QUARANTINED for state in states)

    def _end(self, child: Child, *, has_died: bool) -> None:
        """Its resources are free from now on; Ray itself starts successors of RESTARTABLE."""
        stays_out = self._roster.state(child) is State.QUARANTINED
        if child.role not in RESTARTABLE or stays_out:
            self._runtime.stop(child)
        elif not has_died:
            self._runtime.restart(child)

    def _bring_back(self, child: Child) -> None:
        successor = child if child.role in RESTARTABLE else self._fleet.replace(child)
        self._roster.restarted(successor)
        self._room.forget(child)
        self._calls.issue(successor, "ping", deadline_s=START_BUDGET_S)
        if child.role in SAVERS:
            self._restore(successor)

    def _restore(self, learner: Child) -> None:
        """Gives a new learner what the last checkpoint has; it publishes above all before.

        The controller's count of updates goes on: it counts work done, and some of it is lost.
        A language learner's versions continue after all that were ever published.
        """
        source = self._checkpoints.latest()
        if learner.role == "learner":
            part = None if source is None else source / "learner"
        else:
            part = None if source is None else source / "language"
        if part is not None and part.is_dir():
            self._calls.issue(learner, "load", part, deadline_s=START_BUDGET_S)
        if learner.role == "learner":
            self._calls.issue(
                learner, "publish", self._progress.weight_version, deadline_s=START_BUDGET_S
            )
        self._reporter.event(
            f"{learner.role}_replaced", source="" if source is None else str(source)
        )

    # ------------------------------------------------------------------ checkpoints

    @property
    def can_save(self) -> bool:
        """Whoever holds a part of a checkpoint is there."""
        return all(self._roster.is_up(child) for child in self._savers())

    @property
    def will_save(self) -> bool:
        """Whoever holds a part of a checkpoint is there, or about to come."""
        return not self.can_save and all(
            self._roster.is_up(child) or self.will_come(child) for child in self._savers()
        )

    def will_come(self, child: Child) -> bool:
        """It is about to start or has begun to, and there is room for it."""
        return self._roster.is_coming(child) and not self._room.is_waiting(child)

    def _savers(self) -> list[Child]:
        learners = (self._fleet.learner, self._fleet.language_learner)
        return [child for child in learners if child is not None]

    @property
    def wants_checkpoint(self) -> bool:
        """A node is about to go, and what is there was not saved since that is known."""
        return self._nodes.wants_checkpoint

    def vacate(self) -> list[Call]:
        """After a checkpoint: whoever has to go starts anew elsewhere; returns lost calls.

        A replay shard stays to the end of its node, since all it holds would go with it.
        """
        self._nodes.wants_checkpoint = False
        lost: list[Call] = []
        for child in self._roster.all_in(State.DRAINING):
            if child.role != "replay":
                lost += self._calls.drop(child)
                self._end(child, has_died=False)
                self._roster.vacated(child)
        return lost

    # ------------------------------------------------------------------ signs of life

    def answers_ping(self, call: Call, pid: int) -> None:
        """A child is there; where it is another process than before, some are told."""
        child = call.child
        is_other = child.pid != pid
        is_lost = child.role == "replay" and not self._shards.is_serving(child)
        if is_lost or (is_other and child.role == "replay" and child.pid):
            self._shard_answers(call, pid)
        if not is_other:
            return  # a sign of life of a child that had nothing else to do
        if child.role == "weight_server" and child.pid:  # empty: the learner publishes again
            self._calls.issue(self._fleet.learner, "publish", self._progress.weight_version)
        self._room.forget(child)
        place = self._runtime.place_of(child)
        child.pid = pid
        if place is not None:
            child.node_id, child.host = place.node_id, place.host
        self._monitor.answered(child)

    def _ping_quiet_children(self) -> None:
        """Asks those for a sign of life that nobody had a reason to call, and lost shards."""
        ages = {beat.process: beat.age_s for beat in self._reporter.heartbeats()}
        for child in self._fleet.children():
            is_quiet = ages.get(child.name, 0.0) > PING_AFTER_S and self._roster.is_up(child)
            is_wanted = is_quiet or child.name in self._lost_at
            if is_wanted and not self._calls.n_in_flight(child=child):
                self._calls.issue(child, "ping")

    # ------------------------------------------------------------------ replay shards

    def _shard_answers(self, call: Call, pid: int) -> None:
        """A shard of replay answered a ping that was lost, or is another process than before."""
        child = call.child
        if self._shards.is_serving(child):  # nobody waited for it when it died
            cause = f"died between two calls, and came back as process {pid}"
            self._note(CallFailed(call, cause, died=True))
            self._shards.lose(child)
            self._roster.restarted(child)
            self._roster.answered(child)
        self._lost_at.pop(child.name, None)
        self._back_at[child.name] = self._runtime.now()
        self._shards.welcome(child)
        self._reporter.event("replay_shard_ready", child=child.name, pid=pid)

    def _recover_shard(self, failure: CallFailed) -> None:
        """Segments in flight are sent elsewhere one by one, as their calls fail: those that Ray
        hands to the restarted process instead are stored there.
        """
        child = failure.call.child
        # While Ray starts a successor calls may fail at once, and those from before its return may
        # fail after it: neither is a second death.
        is_starting = self._runtime.now() - self._lost_at.get(child.name, -inf) < START_BUDGET_S
        is_from_before = failure.call.issued_at < self._back_at.get(child.name, -inf)
        is_known = is_starting or (failure.died and is_from_before)
        if failure.raised or not is_known:
            self._note(failure)
            self._lost_at[child.name] = self._runtime.now()
            self._shards.lose(child)
            self._calls.drop(child, keep="add")
            self._end(child, has_died=failure.died)
        self._shards.send_again(failure.call)


def _with_host(child: Child, failure: CallFailed) -> str:
    return f"on {child.host or 'an unknown host'}, {failure}"
