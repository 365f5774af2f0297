"""The driver's loop: issues bounded calls, forwards segments unopened, reacts to answers.

Control and metadata only; segments, batches and weights never pass through this process. Nothing
here blocks for longer than one wait turn, and no child is ever made to wait for a rate: a call
that must not run yet is simply not issued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.collect_report import CollectReport
from actors.evaluation import EvaluationReport
from actors.prior.backend import PublishReport
from actors.reanalysis import ReanalysisReport
from actors.search.service import ServiceStats
from launch.config import Config
from launch.control.adapting import Adapting
from launch.control.call_book import CallBook
from launch.control.checkpointer import Checkpointer
from launch.control.collecting import Collecting
from launch.control.cut import restore_children
from launch.control.evaluating import Evaluating
from launch.control.fleet import Fleet
from launch.control.language_tuning import LanguageTuning
from launch.control.live_control import LiveControl
from launch.control.memory_ladder import refuse_starved
from launch.control.pacing import make_limiter
from launch.control.progress import Progress
from launch.control.refresh_loop import RefreshLoop
from launch.control.refusals import Refusals
from launch.control.reporter import Reporter
from launch.control.rollback import RollBack, WorldModelPatient
from launch.control.roster import Roster
from launch.control.run_directory import RunDirectory
from launch.control.runtime import Call, CallFailed, Runtime
from launch.control.schedule import Schedule
from launch.control.shards import ReplayShards
from launch.control.shutdown import StopRequest
from launch.control.supervision import Supervisor
from launch.control.training import Training
from learner.language.language_learner import LanguageReport
from learner.learner import TrainReport
from replay_service import AddReport

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
        self.progress = Progress(config.acting.num_actors, runtime.now)
        self.limiter = make_limiter(config)
        calls = self._calls = CallBook(runtime, config.control.call_deadline_s)
        self._shards = ReplayShards(calls, fleet, config.replay.num_shards)
        roster = self._roster = Roster(fleet, reporter, config.control.max_restarts, runtime.now)
        self._make_parts(calls, roster)
        self._handlers = self._make_handlers()
        self.has_begun = False  # before that, there is nothing to save

    def _make_parts(self, calls: CallBook, roster: Roster) -> None:
        """Each sees to one concern, and is told of the answers that concern it."""
        config, fleet, reporter = self._config, self._fleet, self._reporter
        progress, limiter, store = self.progress, self.limiter, self._run.checkpoints
        self._supervisor = Supervisor(
            config, self._runtime, fleet, calls, roster, self._shards, reporter, progress, store
        )
        patient = WorldModelPatient(config, calls, fleet, progress)
        self._rollback = RollBack(config.control, calls, store, reporter, patient)
        self._schedule = Schedule(config.schedule, has_language=config.language.enabled)
        self._tuning = LanguageTuning(
            config, calls, fleet, roster, store, progress, reporter, self._schedule
        )
        self._checkpointer = Checkpointer(
            config.control,
            calls,
            self._run,
            fleet,
            progress,
            limiter,
            self._shards,
            reporter,
            (self._rollback.may_save, self._tuning.may_save),
            self._on_failure,
        )
        adapting = self._adapting = Adapting(config.adaptive, progress, reporter)
        live = self._live = LiveControl(config, self._run.path, reporter, progress, calls.now)
        steers = (adapting, live)
        self._training = Training(config, calls, fleet, roster, limiter, self._schedule, *steers)
        self._collecting = Collecting(config, calls, fleet, roster, progress, limiter, *steers)
        self._evaluating = Evaluating(config, calls, fleet, roster, progress, reporter)
        self._refreshes = RefreshLoop(config, calls, fleet, roster, progress)
        self._refusals = Refusals(reporter, self._on_failure)

    def _make_handlers(self) -> dict[str, Callable[[Call, object], None]]:
        """Who is told of an answer, by the method that was called."""
        return {
            "collect": self._on_collect,
            "add": self._on_add,
            "train": self._on_train,
            "evaluate": self._on_evaluate,
            "ping": self._on_ping,
            "publish": self._on_published,
            "load": self._on_done,
            "refresh": self._on_refresh,
            "watch": self._on_done,
            "withdraw": self._on_done,
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
        self._roster.end()
        self._reporter.replay(self._shards.figures_now())
        self._reporter.report(self.progress, self.limiter)

    @property
    def finished(self) -> bool:
        """All env steps are collected and all updates that they allow are done."""
        if self.progress.env_steps < self._config.total_env_steps:
            return False
        return not self.n_moving() and not self._training.has_data

    def _begin(self) -> None:
        resume = self._run.resume
        if resume is not None:
            self.progress.restore(resume.counters["progress"])
            if resume.keeps_replay:
                self.limiter.restore(resume.counters["limiter"])
        self._fleet.start({} if resume is None else resume.incarnations)
        if resume is not None:
            matches = restore_children(self._calls, self._fleet, self._shards, resume)
            self._reporter.resumed(resume, matches)
        for shard in self._fleet.replays:
            place = self._calls.ask(shard, "placement")
            self._reporter.event("replay_placed", child=shard.name, device=place)
        self._calls.ask(self._fleet.learner, "publish")
        self._supervisor.begin()
        self._live.begin()
        self._collecting.begin()
        self._evaluating.begin()
        self._checkpointer.begin()
        if resume is not None and resume.is_branch:
            self.checkpoint("resumed")  # what a replaced learner and the same command go on from
        self.has_begun = True
        self._turn()  # who has answered gets work, in a serial run all

    def _turn(self) -> None:
        for call in self._calls.ready():
            try:
                answer = self._runtime.value(call)
            except CallFailed as failure:
                self._on_failure(failure)
                continue
            self._roster.answered(call.child)
            self._collecting.answered(call.child)
            self._reporter.heartbeat(call.child.name, call.method)
            self._handlers[call.method](call, answer)
        self._supervisor.turn()
        if self._reporter.due():
            self._reporter.report(self.progress, self.limiter)
            self._ask_for_figures()
            self._supervisor.look_around()

    # ------------------------------------------------------------------ issuing

    def _issue(self) -> None:
        self._live.look()
        self._checkpointer.is_asked |= self._live.take_checkpoint_wish()
        saves = self._checkpointer.is_due and self._supervisor.can_save
        if not self._live.is_paused:
            self._issue_work(saves)
        self._checkpointer.tell_of_uploads()
        since = self._calls.now()
        if self._supervisor.wants_checkpoint and self._supervisor.can_save:
            # Children are to move, so that env actors are waited for as well.
            self.drain()
            self._checkpointer.save_or_go_on(since=since, idle_since=since)
            self._lost(self._supervisor.vacate())
        elif saves and not self._tuning.is_busy:
            self._checkpointer.save_or_go_on(since=since, idle_since=self._settle(since))

    def _issue_work(self, saves: bool) -> None:
        """Before a checkpoint that `saves`, what must be waited for is not begun."""
        self._training.issue()
        self._collecting.issue()
        if not saves:  # the language model's updates are the longest to wait for
            self._tuning.issue(has_data=self.limiter.inserted >= self.limiter.min_positions)
        self._refreshes.issue()
        self._evaluating.issue()

    def _settle(self, since: float) -> float:
        """Waits, bounded, until nothing that a checkpoint holds is moving; env actors play on.

        Returns when, on the runtime's clock, the learner had no more to do.
        """
        idle_since = since
        deadline = since + DRAIN_BUDGET_S
        while True:
            self._turn()
            if self._calls.n_in_flight("train", child=self._fleet.learner):
                idle_since = self._calls.now()
            is_moving = self._calls.n_in_flight("add", "train") or self._supervisor.will_save
            if not is_moving or self._calls.now() >= deadline:
                return idle_since

    def _ask_for_figures(self) -> None:
        calls, fleet = self._calls, self._fleet
        if self._roster.takes_work(fleet.monitor) and not calls.n_in_flight("sample"):
            calls.issue(fleet.monitor, "sample", self._reporter.heartbeats())
        self._shards.ask_stats()
        if self._roster.takes_work(fleet.search) and not calls.n_in_flight(
            "stats", child=fleet.search
        ):
            calls.issue(fleet.search, "stats")

    # ------------------------------------------------------------------ answers

    def _on_collect(self, call: Call, report: CollectReport) -> None:
        self._collecting.collected(call.child)
        self.progress.collected(call.child.name, report)
        self._adapting.collected(report)
        self._reporter.collected(call.child.name, report)
        self._reporter.views(call.child.index, report.views)
        self._shards.add(call.payload, report.payload_bytes, call.child)

    def _on_add(self, call: Call, report: AddReport) -> None:
        sender = self._shards.added(call, report)
        self.limiter.insert(report.n_positions)
        self._refreshes.inserted(report.n_positions)
        is_current = self._fleet.is_current(sender)
        self._refusals.answered(call, sender, report, is_current=is_current)

    def _on_train(self, call: Call, report: TrainReport | LanguageReport) -> None:
        if isinstance(report, TrainReport):
            self.progress.trained(report)
            self._refreshes.trained(report)
            self._rollback.trained(call, report)
            if self._schedule.done("wm", report.n_updates, int(call.args[0])):
                self._reporter.event("schedule_phase", phase="llm", cause="")
        else:
            self._tuning.trained(call, report)

    def _on_refresh(self, call: Call, report: ReanalysisReport) -> None:
        self._refreshes.answered(report)

    def _on_evaluate(self, call: Call, report: EvaluationReport) -> None:
        self._evaluating.answered(report)

    def _on_ping(self, call: Call, pid: int) -> None:
        if call.child.role == "prior_engine" and call.child.pid != pid:
            self._tuning.publishing.engine_ready(call.child)
            self._reporter.event("prior_engine_ready", engine=call.child.name, pid=pid)
        self._supervisor.answers_ping(call, pid)

    def _on_published(self, call: Call, answer: int | PublishReport) -> None:
        if isinstance(answer, PublishReport):
            self._tuning.publishing.answered(call, answer)

    def _on_done(self, call: Call, answer: object) -> None:
        """Nothing follows: a new learner has its checkpoint, the monitor knows a process, an engine
        has gone back.
        """

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
        self._lost(self._supervisor.recover(failure))
        if failure.call.child.role == "prior_engine":
            self._tuning.publishing.engine_lost(failure.call.child)

    def _lost(self, calls: Sequence[Call]) -> None:
        """What these calls were asked to do will not be done by them."""
        self._collecting.lost(calls)
        for call in calls:
            if call.method == "train":
                is_language = call.child.role == "language_learner"
                self._schedule.lost("llm" if is_language else "wm", int(call.args[0]))

    # ------------------------------------------------------------------ ends and cuts

    def drain(self, *, is_last: bool = False) -> None:
        """Waits, bounded, until no call that moves data is in flight."""
        if is_last or self._stop.requested:
            self._calls.hurry(self._config.control.stop_budget_s)
        deadline = self._calls.now() + min(DRAIN_BUDGET_S, self._calls.seconds_left / 2)
        while (self.n_moving() or self._supervisor.will_save) and self._calls.now() < deadline:
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
            while not self._stop.requested and (
                self._evaluating.is_busy or self._supervisor.will_come(self._fleet.evaluator)
            ):
                self._turn()
            if not last:
                self._evaluating.play(self._config.evaluation.final_episodes)
