"""The driver's loop: issues bounded calls, forwards segments unopened, reacts to answers.

Control and metadata only; segments, batches and weights never pass through this process. Nothing
here blocks for longer than one wait turn, and no child is ever made to wait for a rate: a call
that must not run yet is simply not issued.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from actors.acting import CollectReport
from actors.evaluation import EvaluationReport
from actors.prior.backend import PublishReport
from launch.config import Config
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.rate_limiter import RateLimiter
from launch.control.reporter import Reporter
from launch.control.run_directory import RunDirectory
from launch.control.runtime import Call, CallFailed, Child, Runtime
from launch.control.shutdown import StopRequest
from learner.language.language_learner import LanguageReport
from learner.learner import TrainReport
from replay_service import AddReport

COLLECTS_IN_FLIGHT = 2  # per env actor: one running, one queued, so that it never idles
TRAINS_IN_FLIGHT = 2
ADDS_IN_FLIGHT_PER_ACTOR = 4
WAIT_TURN_S = 0.5
DRAIN_BUDGET_S = 60.0
START_BUDGET_S = 300.0


class RunFailed(RuntimeError):
    """The run can't go on; the message says which child, why, and what to do."""


class Controller:
    """One per run, in the driver's main thread."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        fleet: Fleet,
        run: RunDirectory,
        reporter: Reporter,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._fleet = fleet
        self._run = run
        self._reporter = reporter
        self._stop = stop
        self.progress = Progress(config.acting.num_actors)
        acting, batch = config.acting, config.learner.batch_size
        self._train_chunk = config.control.updates_per_call * batch
        self.limiter = RateLimiter(
            config.limiter,
            min_positions=config.replay.min_positions,
            sample_chunk=TRAINS_IN_FLIGHT * self._train_chunk,
            insert_chunk=COLLECTS_IN_FLIGHT * acting.num_actors * acting.collect_steps,
        )
        self._calls: list[Call] = []
        self._issued_env_steps = 0
        self._next_evaluation = 0
        self._next_checkpoint = 0
        self._restarts: dict[str, int] = {}
        self._prior_ready = False
        self._language_updates = 0
        self._handlers: dict[str, Callable[[Call, object], None]] = {
            "collect": self._on_collect,
            "add": self._on_add,
            "train": self._on_train,
            "evaluate": self._on_evaluate,
            "ping": self._on_ping,
            "publish": self._on_adapter_published,
            "watch": self._on_watched,
            "sample": self._on_monitor_sample,
            "stats": self._on_replay_stats,
        }

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Runs to the last env step and update, or until asked to stop; ends in a checkpoint.

        Raises RunFailed when a child that can't be replaced fails.
        """
        self._begin()
        while not self._finished() and not self._stop.requested:
            self._issue()
            self._turn()
        if not self._stop.requested:
            self._final_evaluation()
        self._drain()
        self.checkpoint("stopped" if self._stop.requested else "finished")
        self._reporter.report(self.progress, self.limiter)

    @property
    def finished(self) -> bool:
        return self._finished()

    def _begin(self) -> None:
        state = self._restore() if self._run.resume_from is not None else {}
        incarnations = {int(k): int(v) for k, v in dict(state.get("incarnations", {})).items()}
        self._fleet.start(incarnations)
        if self._run.resume_from is not None:
            folder = self._run.resume_from
            self._ask(self._fleet.replay, "load", folder / "replay")
            self._ask(self._fleet.learner, "load", folder / "learner")
            if self._fleet.language_learner is not None and (folder / "language").is_dir():
                self._ask(self._fleet.language_learner, "load", folder / "language")
        self._ask(self._fleet.learner, "publish")
        for child in self._fleet.children():
            self._call(child, "ping", deadline_s=START_BUDGET_S)
        self._issued_env_steps = self.progress.env_steps
        self._next_evaluation = self.progress.env_steps + self._config.evaluation.every_env_steps
        self._next_checkpoint = (
            self.progress.env_steps + self._config.control.checkpoint_every_env_steps
        )

    def _restore(self) -> dict[str, object]:
        from launch.control.checkpoint import verify

        state = verify(self._run.resume_from)
        self.progress.restore(dict(state["progress"]))
        self.limiter.restore(dict(state["limiter"]))
        self._language_updates = int(state["language_updates"])
        self._reporter.event(
            "resumed", source=str(self._run.resume_from), env_steps=self.progress.env_steps
        )
        return state

    def _finished(self) -> bool:
        if self.progress.env_steps < self._config.total_env_steps:
            return False
        busy = any(call.method in ("collect", "add", "train") for call in self._calls)
        return not busy and not self.limiter.may_sample(self._train_chunk)

    # ------------------------------------------------------------------ issuing

    def _issue(self) -> None:
        self._issue_trains()
        self._issue_collects()
        if self.progress.env_steps >= self._next_evaluation and not self._in_flight("evaluate"):
            self._next_evaluation += self._config.evaluation.every_env_steps
            n_episodes = self._config.evaluation.n_episodes
            self._call(self._fleet.evaluator, "evaluate", n_episodes, True)
        if self.progress.env_steps >= self._next_checkpoint:
            self._next_checkpoint += self._config.control.checkpoint_every_env_steps
            self._drain()
            self.checkpoint("periodic")
        self._issue_language()

    def _issue_collects(self) -> None:
        config = self._config
        overlapping = config.control.overlap or not self._in_flight("train", self._fleet.learner)
        for index, child in self._fleet.env_actors.items():
            while (
                overlapping
                and self._issued_env_steps < config.total_env_steps
                and self._in_flight("collect", child) < COLLECTS_IN_FLIGHT
                and self._in_flight("add") < ADDS_IN_FLIGHT_PER_ACTOR * config.acting.num_actors
                and self.limiter.may_insert()
                and (config.control.overlap or not self.limiter.may_sample(self._train_chunk))
            ):
                n_steps = min(
                    config.acting.collect_steps, config.total_env_steps - self._issued_env_steps
                )
                self._issued_env_steps += n_steps
                self._call(
                    self._fleet.env_actors[index],
                    "collect",
                    n_steps,
                    self.progress.env_steps,
                    deadline_s=config.control.collect_deadline_s + START_BUDGET_S
                    if child.pid == 0
                    else config.control.collect_deadline_s,
                    with_payload=True,
                )

    def _issue_trains(self) -> None:
        alternating = not self._config.control.overlap
        if alternating and (self._in_flight("collect") or self._in_flight("add")):
            return
        while self._in_flight("train", self._fleet.learner) < TRAINS_IN_FLIGHT and self.limiter.may_sample(
            self._train_chunk
        ):
            self.limiter.sample(self._train_chunk)
            self._call(self._fleet.learner, "train", self._config.control.updates_per_call)

    def _issue_language(self) -> None:
        learner = self._fleet.language_learner
        if learner is None or not self._prior_ready or self._in_flight("train", learner):
            return
        language = self._config.language
        updates_since = self.progress.updates - self._language_updates
        if updates_since >= language.world_model_updates_per_call:
            self._language_updates = self.progress.updates
            self._call(learner, "train", language.updates_per_call)

    # ------------------------------------------------------------------ answers

    def _turn(self) -> None:
        for call in self._runtime.wait(self._calls, WAIT_TURN_S):
            if call not in self._calls:  # dropped with its child while this turn was handled
                continue
            self._calls.remove(call)
            try:
                answer = self._runtime.value(call)
            except CallFailed as failure:
                self._on_failure(failure)
                continue
            self._handlers[call.method](call, answer)
        if self._reporter.due():
            self._reporter.report(self.progress, self.limiter)
            if not self._in_flight("sample"):
                self._call(self._fleet.monitor, "sample", self._reporter.heartbeats())
            if not self._in_flight("stats"):
                self._call(self._fleet.replay, "stats")

    def _on_collect(self, call: Call, report: CollectReport) -> None:
        index = int(call.child.name.rpartition("-")[2])
        self.progress.collected(index, report)
        self._reporter.heartbeat(call.child.name, "collect")
        self._reporter.episodes(report)
        self._call(self._fleet.replay, "add", call.payload)

    def _on_add(self, call: Call, report: AddReport) -> None:
        self.limiter.insert(report.n_positions)
        self._reporter.heartbeat(call.child.name, "add")

    def _on_train(self, call: Call, report: TrainReport | LanguageReport) -> None:
        self._reporter.heartbeat(call.child.name, "train")
        if isinstance(report, TrainReport):
            self.progress.trained(report)
            return
        self._reporter.language(report.metrics)
        if report.adapter is not None:
            adapter = report.adapter
            self._call(self._fleet.prior_engine, "publish", adapter.version, adapter.path)

    def _on_evaluate(self, call: Call, report: EvaluationReport) -> None:
        self.progress.evaluated(report)
        self._reporter.heartbeat(call.child.name, "evaluate")
        self._reporter.evaluation(report, self.progress.env_steps)

    def _on_ping(self, call: Call, pid: int) -> None:
        call.child.pid = pid
        if call.child.role == "prior_engine":
            self._prior_ready = True
            self._reporter.event("prior_engine_ready", pid=pid)
        self._reporter.heartbeat(call.child.name, "ready")
        self._call(self._fleet.monitor, "watch", call.child.name, pid)

    def _on_adapter_published(self, call: Call, report: PublishReport) -> None:
        self._reporter.event(
            "adapter_published",
            version=report.version,
            accepted=report.accepted,
            max_gap=report.max_gap,
            reason=report.reason,
        )

    def _on_watched(self, call: Call, answer: None) -> None:
        self._reporter.heartbeat(call.child.name, "watch")

    def _on_monitor_sample(self, call: Call, sample: dict[str, float]) -> None:
        self._reporter.resources(sample)

    def _on_replay_stats(self, call: Call, stats: dict[str, float]) -> None:
        self._reporter.replay(stats)

    # ------------------------------------------------------------------ failures

    def _on_failure(self, failure: CallFailed) -> None:
        child = failure.call.child
        self._reporter.event(
            "child_failed", child=child.name, method=failure.call.method, cause=failure.cause[-400:]
        )
        if child.role not in ("env_actor", "evaluator", "monitor", "prior_engine"):
            raise RunFailed(
                f"{failure}\nthe run can't go on without its {child.role}; "
                "the same command goes on from the last checkpoint"
            )
        self._restarts[child.name] = self._restarts.get(child.name, 0) + 1
        if self._restarts[child.name] > self._config.control.max_restarts:
            raise RunFailed(
                f"{child.name} failed {self._restarts[child.name]} times, last: {failure}\n"
                "raise control.max_restarts if this is expected"
            )
        self._replace(child, failure)

    def _replace(self, child: Child, failure: CallFailed) -> None:
        lost = [c for c in (*self._calls, failure.call) if c.child is child]
        self._calls = [c for c in self._calls if c.child is not child]
        self._issued_env_steps -= sum(int(c.args[0]) for c in lost if c.method == "collect")
        self.progress.restarts += 1
        if child.role == "prior_engine":
            # Env actors hold its handle, so it must come back behind the same one.
            self._prior_ready = False
            if not failure.died:
                self._runtime.restart(child)
            replacement = child
        else:
            self._runtime.stop(child)
            replacement = self._fleet.replace(child)
        self._call(replacement, "ping", deadline_s=START_BUDGET_S)

    # ------------------------------------------------------------------ ends and cuts

    def _drain(self) -> None:
        """Waits, bounded, until no call that moves data is in flight."""
        deadline = time.monotonic() + DRAIN_BUDGET_S
        moving = ("collect", "add", "train")
        while any(c.method in moving for c in self._calls) and time.monotonic() < deadline:
            self._turn()

    def checkpoint(self, reason: str) -> None:
        """Saves one cut over replay, learner, language learner and counters; nothing is moving."""
        started = time.monotonic()
        store = self._run.checkpoints
        folder = store.begin(self.progress.updates, self.progress.env_steps)
        self._ask(self._fleet.replay, "save", folder / "replay")
        self._ask(self._fleet.learner, "save", folder / "learner")
        if self._fleet.language_learner is not None:
            self._ask(self._fleet.language_learner, "save", folder / "language")
        counters = {
            "progress": self.progress.state(),
            "limiter": self.limiter.state(),
            "incarnations": {str(k): v for k, v in self._fleet.incarnations.items()},
            "language_updates": self._language_updates,
        }
        path = store.commit(folder, counters, reason=reason)
        self._reporter.event(
            "checkpoint", path=str(path), reason=reason, seconds=time.monotonic() - started
        )

    def _final_evaluation(self) -> None:
        self._drain_evaluation()
        self._call(self._fleet.evaluator, "evaluate", self._config.evaluation.final_episodes, True)
        self._drain_evaluation()

    def _drain_evaluation(self) -> None:
        while self._in_flight("evaluate") and not self._stop.requested:
            self._turn()

    # ------------------------------------------------------------------ calls

    def _call(
        self,
        child: Child,
        method: str,
        *args: object,
        deadline_s: float | None = None,
        with_payload: bool = False,
    ) -> None:
        limit = deadline_s if deadline_s is not None else self._config.control.call_deadline_s
        self._calls.append(
            self._runtime.call(
                child, method, *args, deadline_s=limit, with_payload=with_payload
            )
        )

    def _ask(self, child: Child, method: str, *args: object) -> object:
        """One call whose answer is needed before anything else may happen."""
        call = self._runtime.call(child, method, *args, deadline_s=START_BUDGET_S)
        while not self._runtime.wait([call], WAIT_TURN_S):
            pass
        try:
            return self._runtime.value(call)
        except CallFailed as failure:
            raise RunFailed(str(failure)) from failure

    def _in_flight(self, method: str, child: Child | None = None) -> int:
        return sum(
            c.method == method and (child is None or c.child is child) for c in self._calls
        )
