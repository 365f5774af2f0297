"""The driver's loop: issues bounded calls, forwards segments unopened, reacts to answers.

Control and metadata only; segments, batches and weights never pass through this process. Nothing
here blocks for longer than one wait turn, and no child is ever made to wait for a rate: a call
that must not run yet is simply not issued.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from actors.collect_report import CollectReport
from actors.evaluation import EvaluationReport
from actors.prior.backend import PublishReport
from actors.reanalysis import ReanalysisReport
from actors.search.service import ServiceStats
from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.checkpointer import Checkpointer
from launch.control.cut import restore_children
from launch.control.fleet import Fleet
from launch.control.language_tuning import LanguageTuning
from launch.control.memory_ladder import refuse_starved
from launch.control.pacing import (
    COLLECTS_IN_FLIGHT,
    TRAINS_IN_FLIGHT,
    make_limiter,
    train_chunk,
)
from launch.control.progress import Progress
from launch.control.refresh_loop import RefreshLoop
from launch.control.reporter import Reporter
from launch.control.rollback import RollBack
from launch.control.run_directory import RunDirectory
from launch.control.runtime import Call, CallFailed, Runtime
from launch.control.shards import ReplayShards
from launch.control.shutdown import StopRequest
from launch.control.supervision import START_BUDGET_S, Supervisor
from learner.language.language_learner import LanguageReport
from learner.learner import TrainReport
from replay_service import AddReport

ADDS_IN_FLIGHT_PER_ACTOR = 4
DRAIN_BUDGET_S = 60.0


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
        self._train_chunk = train_chunk(config)
        self.limiter = make_limiter(config)
        self._calls = CallBook(runtime, config.control.call_deadline_s)
        self._shards = ReplayShards(self._calls, fleet, config.replay.num_shards)
        self._supervisor = Supervisor(
            runtime,
            fleet,
            self._calls,
            self._shards,
            reporter,
            self.progress,
            run.checkpoints,
            config.control.max_restarts,
        )
        self._rollback = RollBack(
            config, self._calls, fleet, run.checkpoints, self.progress, reporter
        )
        self._issued_env_steps = 0
        self._next_evaluation = 0
        self._checkpointer = Checkpointer(
            config.control,
            self._calls,
            run.checkpoints,
            fleet,
            self.progress,
            self.limiter,
            self._shards,
            reporter,
            self._rollback.may_save,
            self._on_failure,
        )
        self._tuning = LanguageTuning(config, self._calls, fleet, self.progress, reporter)
        self._refreshes = RefreshLoop(config, self._calls, fleet, self.progress)
        self.has_begun = False  # before that, there is nothing to save
        self._handlers: dict[str, Callable[[Call, object], None]] = {
            "collect": self._on_collect,
            "add": self._on_add,
            "train": self._on_train,
            "evaluate": self._on_evaluate,
            "ping": self._on_ping,
            "publish": self._on_published,
            "load": self._on_loaded,
            "refresh": self._on_refresh,
            "watch": self._on_watched,
            "sample": self._on_monitor_sample,
            "stats": self._on_stats,
        }

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Runs to the last env step and update, or until asked to stop; ends in a checkpoint.

        Raises RunFailed when a child that can't be replaced fails.
        """
        self._begin()
        while not self.finished and not self._stop.requested:
            self._issue()
            self._turn()
        if not self._stop.requested:
            self._final_evaluation()
        self.drain()
        self.checkpoint("stopped" if self._stop.requested else "finished")
        self._reporter.replay(self._shards.figures_now())
        self._reporter.report(self.progress, self.limiter)

    @property
    def finished(self) -> bool:
        """All env steps are collected and all updates that they allow are done."""
        if self.progress.env_steps < self._config.total_env_steps:
            return False
        return not self.n_moving() and not self.limiter.may_sample(self._train_chunk)

    def _begin(self) -> None:
        resume = self._run.resume
        if resume is not None:
            self.progress.restore(resume.counters["progress"])
            if resume.keeps_replay:
                self.limiter.restore(resume.counters["limiter"])
            self._tuning.tuned_at_update = self.progress.updates
        self._fleet.start({} if resume is None else resume.incarnations)
        if resume is not None:
            matches = restore_children(self._calls, self._fleet, self._shards, resume)
            self._reporter.resumed(resume, matches)
        for shard in self._fleet.replays:
            place = self._calls.ask(shard, "placement")
            self._reporter.event("replay_placed", child=shard.name, device=place)
        self._calls.ask(self._fleet.learner, "publish")
        for child in self._fleet.children():
            self._calls.issue(child, "ping", deadline_s=START_BUDGET_S)
        env_steps = self._issued_env_steps = self.progress.env_steps
        self._next_evaluation = env_steps + self._config.evaluation.every_env_steps
        self._checkpointer.begin()
        if resume is not None and resume.is_branch:
            self.checkpoint("resumed")  # what a replaced learner and the same command go on from
        self.has_begun = True

    def _turn(self) -> None:
        for call in self._calls.ready():
            try:
                answer = self._runtime.value(call)
            except CallFailed as failure:
                self._on_failure(failure)
                continue
            self._reporter.heartbeat(call.child.name, call.method)
            self._handlers[call.method](call, answer)
        if self._reporter.due():
            self._reporter.report(self.progress, self.limiter)
            if not self._calls.n_in_flight("sample"):
                self._calls.issue(self._fleet.monitor, "sample", self._reporter.heartbeats())
            self._shards.ask_stats()
            search = self._fleet.search
            if search is not None and not self._calls.n_in_flight("stats", child=search):
                self._calls.issue(search, "stats")
            self._supervisor.ping_quiet_children()

    # ------------------------------------------------------------------ issuing

    def _issue(self) -> None:
        self._issue_trains()
        for index in self._fleet.env_actors:
            self._issue_collects(index)
        self._tuning.issue()
        self._refreshes.issue()
        is_due = self.progress.env_steps >= self._next_evaluation
        if is_due and not self._calls.n_in_flight("evaluate"):
            self._next_evaluation += self._config.evaluation.every_env_steps
            self._evaluate(self._config.evaluation.n_episodes)
        self._checkpointer.tell_of_uploads()
        if self._checkpointer.is_due:
            self.drain()
            self._checkpointer.save_or_go_on()

    def _issue_collects(self, index: int) -> None:
        """Keeps one env actor busy, as far as the limiter and the bound on adds allow."""
        acting, control = self._config.acting, self._config.control
        while self._may_collect(index):
            child = self._fleet.env_actors[index]
            left = self._config.total_env_steps - self._issued_env_steps
            n_steps = min(acting.collect_steps, left)
            self._issued_env_steps += n_steps
            is_starting = child.pid == 0
            self._calls.issue(
                child,
                "collect",
                n_steps,
                self.progress.env_steps,
                deadline_s=control.collect_deadline_s + is_starting * START_BUDGET_S,
                with_payload=True,
            )

    def _may_collect(self, index: int) -> bool:
        calls = self._calls
        if self._issued_env_steps >= self._config.total_env_steps:
            return False
        if calls.n_in_flight("collect", child=self._fleet.env_actors[index]) >= COLLECTS_IN_FLIGHT:
            return False
        if calls.n_in_flight("add") >= ADDS_IN_FLIGHT_PER_ACTOR * len(self._fleet.env_actors):
            return False
        if not self._config.control.overlap and (
            calls.n_in_flight("train", child=self._fleet.learner)
            or self.limiter.may_sample(self._train_chunk)
        ):
            return False
        return self.limiter.may_insert()

    def _issue_trains(self) -> None:
        calls, learner = self._calls, self._fleet.learner
        if not self._config.control.overlap and calls.n_in_flight("collect", "add"):
            return
        while calls.n_in_flight(
            "train", child=learner
        ) < TRAINS_IN_FLIGHT and self.limiter.may_sample(self._train_chunk):
            self.limiter.sample(self._train_chunk)
            calls.issue(learner, "train", self._config.control.updates_per_call)

    def _evaluate(self, n_episodes: int) -> None:
        self._calls.issue(self._fleet.evaluator, "evaluate", n_episodes, True)

    # ------------------------------------------------------------------ answers

    def _on_collect(self, call: Call, report: CollectReport) -> None:
        self.progress.collected(call.child.name, report)
        self._reporter.episodes(report)
        self._shards.add(call.payload, report.payload_bytes, call.child.name)

    def _on_add(self, call: Call, report: AddReport) -> None:
        self._shards.added(call, report)
        self.limiter.insert(report.n_positions)
        self._refreshes.inserted(report.n_positions)
        for reason in report.reasons:
            self._reporter.event("segment_rejected", reason=reason)

    def _on_train(self, call: Call, report: TrainReport | LanguageReport) -> None:
        if isinstance(report, TrainReport):
            self.progress.trained(report)
            self._refreshes.trained(report)
            self._rollback.trained(call, report)
        else:
            self._tuning.trained(report)

    def _on_refresh(self, call: Call, report: ReanalysisReport) -> None:
        self._refreshes.answered(report)

    def _on_evaluate(self, call: Call, report: EvaluationReport) -> None:
        self.progress.evaluated(report)
        self._reporter.evaluation(report, self.progress.env_steps)

    def _on_ping(self, call: Call, pid: int) -> None:
        is_lost = call.child.role == "replay" and not self._shards.is_serving(call.child)
        is_other = call.child.pid != pid
        if is_lost or (is_other and call.child.role == "replay" and call.child.pid):
            self._supervisor.shard_answers(call, pid)
        if not is_other:
            return  # a sign of life of a child that had nothing else to do
        if call.child.role == "weight_server" and call.child.pid:
            self._supervisor.weight_server_answers()
        call.child.pid = pid
        if call.child.role == "prior_engine":
            self._tuning.is_prior_ready = True
            self._reporter.event("prior_engine_ready", pid=pid)
        if call.child.role == "monitor":
            self._supervisor.monitor_answers()
        else:
            self._calls.issue(self._fleet.monitor, "watch", call.child.name, pid)

    def _on_published(self, call: Call, answer: int | PublishReport) -> None:
        if isinstance(answer, PublishReport):
            self._tuning.published(call, answer)

    def _on_loaded(self, call: Call, answer: None) -> None:
        """A new learner has what the last checkpoint held; nothing follows from it."""

    def _on_watched(self, call: Call, answer: None) -> None:
        """The monitor knows a process now; nothing follows from it."""

    def _on_monitor_sample(self, call: Call, sample: dict[str, float]) -> None:
        self._reporter.resources(sample)

    def _on_stats(self, call: Call, stats: dict[str, float] | ServiceStats) -> None:
        if isinstance(stats, ServiceStats):
            self.progress.cached(call.child.name, stats.pools)
            self._reporter.search(stats.metrics)
        else:
            self._reporter.replay(self._shards.told(call.child, stats))

    # ------------------------------------------------------------------ failures

    def _on_failure(self, failure: CallFailed) -> None:
        refuse_starved(self._config, self.progress, failure)
        lost = self._supervisor.recover(failure)
        self._issued_env_steps -= sum(int(c.args[0]) for c in lost if c.method == "collect")
        if failure.call.child.role == "prior_engine":
            self._tuning.is_prior_ready = False

    # ------------------------------------------------------------------ ends and cuts

    def drain(self, *, is_last: bool = False) -> None:
        """Waits, bounded, until no call that moves data is in flight."""
        if is_last or self._stop.requested:
            self._calls.hurry(self._config.control.stop_budget_s)
        deadline = time.monotonic() + min(DRAIN_BUDGET_S, self._calls.seconds_left / 2)
        while self.n_moving() and time.monotonic() < deadline:
            self._turn()

    @property
    def is_out_of_time(self) -> bool:
        """The stop budget is used up."""
        return self._calls.seconds_left == 0.0

    def n_moving(self) -> int:
        """Calls in flight that move data."""
        return self._calls.n_in_flight("collect", "add", "train")

    def checkpoint(self, reason: str) -> None:
        """Saves the run as it is; call it when nothing is moving. Raises RunFailed or OSError."""
        self._checkpointer.save(reason)

    def _final_evaluation(self) -> None:
        for last in (False, True):
            while self._calls.n_in_flight("evaluate") and not self._stop.requested:
                self._turn()
            if not last:
                self._evaluate(self._config.evaluation.final_episodes)
