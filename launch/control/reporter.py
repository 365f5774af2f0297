"""Everything a run writes and shows while it runs: metrics, events, videos, live view, terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from actors.collect_report import CollectReport
from actors.evaluation import EvaluationReport
from actors.live_view import EnvView
from launch.control.child_health import State
from launch.control.construction import Construction
from launch.control.gpu_alarm import GpuAlarm
from launch.control.live_file import LiveFile
from launch.control.progress import Progress
from launch.control.rate_limiter import RateLimiter
from launch.control.resume import Resume
from launch.control.resume_report import summary, write_report
from launch.control.vital_signs import VitalSigns
from launch.control.whole_file import replace_file
from launch.monitoring.json_lines import Scalar
from launch.monitoring.live_table import LiveTable
from launch.monitoring.metrics_writer import MetricsWriter
from launch.monitoring.monitor import Heartbeat
from launch.tracing.time_book import DRIVER
from learner.partial_restore import FileMatch
from learner.weights import NO_VERSION
from replay_service import stat_line

LIVE_SETTINGS_FILE = "live-settings.json"
STAT_LINE_PERIOD_S = 30.0
# Not on the terminal.
QUIET_EVENTS = ("started", "episode_end", "evaluation", "child_state", "environments_made")
QUIET_EVENTS += ("weights",)


class Reporter:
    """Owned by the controller, called from its one thread; never ends a run by failing to write."""

    def __init__(
        self,
        run_dir: Path,
        writer: MetricsWriter,
        table: LiveTable,
        *,
        period_s: float,
        construction: Construction | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir = run_dir
        self._writer = writer
        self._table = table
        self._period_s = period_s
        self._clock = clock
        self._reported_at = clock()
        self._live = LiveFile(run_dir, clock)
        self._stat_line_at = clock()
        self._resources: Mapping[str, Scalar] = {}
        self._replay: Mapping[str, float] = {}
        self._language: Mapping[str, float] = {}
        self._publishing: Mapping[str, float] = {}
        self._search: Mapping[str, float] = {}
        self.times: Callable[[], Mapping[str, float]] = dict  # of all processes, since last asked
        self._signs = VitalSigns(clock)
        self._gpus = GpuAlarm()
        self._device: dict[str, float] = {}
        self._construction = construction
        if construction is not None:
            table.say(construction.begun())
        self._acting_version = NO_VERSION
        self.last_metrics: dict[str, Scalar] = {}

    def due(self) -> bool:
        return self._clock() - self._reported_at >= self._period_s

    def report(self, progress: Progress, limiter: RateLimiter) -> None:
        """Writes one metric record and refreshes the terminal."""
        self._reported_at = self._clock()
        metrics: dict[str, Scalar] = dict(progress.close_window())
        metrics.update(self._replay)
        metrics.update(self._language)
        metrics.update(self._publishing)
        metrics.update(self._search)
        metrics.update(self._resources)
        metrics.update(self.times())
        metrics.update(self._signs.figures())
        metrics.update(self._gpus.figures())
        metrics.update(self._device)
        metrics["ratio_target"] = limiter.config.samples_per_insert
        metrics["ratio_actual"] = limiter.ratio
        self._writer.write(metrics, update=progress.updates, global_step=progress.env_steps)
        self.last_metrics = {
            **metrics,
            "update": progress.updates,
            "global_step": progress.env_steps,
        }
        self._table.update(self.last_metrics)

    def event(self, kind: str, **fields: object) -> None:
        self._writer.event(kind, **fields)
        if kind == "checkpoint":
            self._signs.saved()
        if kind not in QUIET_EVENTS:
            shown = ", ".join(f"{name} {value}" for name, value in fields.items())
            self._table.say(f"[train] {kind}: {shown}"[:300])

    def resumed(self, resume: Resume, learner: Mapping[str, FileMatch] | None) -> None:
        """`learner`: of a relaxed resume, what became of the keys in each file."""
        fields = {"source": resume.source, "found_by": resume.found}
        self.event("resumed", **fields, relaxed=resume.relaxed, env_steps=resume.env_steps)
        if learner is not None:
            path = write_report(self._run_dir, resume, learner)
            self._table.say(f"[train] {summary(resume, learner, path)}")

    def heartbeat(self, child: str, phase: str) -> None:
        self._signs.beat(child, phase)

    def child_state(self, child: str, before: str, state: str, wait_s: float) -> None:
        """`child` is in another state than before, and leaves it in `wait_s` at the earliest."""
        self._signs.change(child, state)
        line = self._construction.changed(child, state) if self._construction else None
        if line is not None:
            self._table.say(line)
        self.event("child_state", child=child, before=before, state=state, wait_s=round(wait_s, 3))

    def heartbeats(self) -> list[Heartbeat]:
        """Of all children, and of the driver, which is the caller."""
        return [Heartbeat(DRIVER, "turn", 0.0, State.HEALTHY), *self._signs.heartbeats()]

    def device(self, device: str, fallen_back: str | None) -> None:
        """Where learning happens; `fallen_back`: why the CPU, where a GPU was to be expected."""
        self._device = {
            "learner_on_gpu": float(device != "cpu"),
            "fell_back_to_cpu": float(fallen_back is not None),
        }
        if fallen_back is not None:
            self.event("fell_back_to_cpu", cause=fallen_back)

    def collected(self, child: str, report: CollectReport) -> None:
        """What an env actor brought beside its segments."""
        if report.made_s:
            self.event(
                "environments_made",
                child=child,
                count=len(report.made_s),
                seconds=round(sum(report.made_s), 3),
                slowest_s=round(max(report.made_s), 3),
            )
        if report.weight_version > self._acting_version:
            self._acting_version = report.weight_version
            self.event("weights", version=report.weight_version)
        self.episodes(report)

    def episodes(self, report: CollectReport) -> None:
        for episode in report.episodes:
            self._writer.event(
                "episode_end",
                actor=episode.actor,
                env_id=episode.env_id,
                level=episode.level,
                episode_return=episode.total_reward,
                length=episode.length,
                reason=episode.end_reason,
                max_x=episode.max_x,
            )

    def views(self, actor: int, views: Sequence[EnvView]) -> None:
        """What env actor `actor` showed of its environments."""
        with suppress(OSError):  # a disk that is full now may have room for the next
            self._live.add(actor, views)

    def live_settings(self, settings: Sequence[Mapping[str, object]]) -> None:
        """What can be changed while the run goes on, and what it is now."""
        content = json.dumps({"settings": list(settings)})
        with suppress(OSError):
            replace_file(self._run_dir / LIVE_SETTINGS_FILE, content.encode())

    def evaluation(self, report: EvaluationReport, env_steps: int) -> None:
        self.event(
            "evaluation",
            env_steps=env_steps,
            weight_version=report.weight_version,
            returns=list(report.returns),
            lengths=list(report.lengths),
            reasons=list(report.end_reasons),
            max_x=list(report.max_x),
            levels=list(report.levels),
            clears=list(report.clears),
            modes={mode: list(played.returns) for mode, played in report.modes.items()},
        )
        reached = f", max x {max(report.max_x)}" if report.max_x else ""
        self._table.say(
            f"[train] evaluation at {env_steps:,} env steps: mean return "
            f"{report.mean_return:.2f} over {len(report.returns)} greedy episodes{reached}"
        )
        if report.video_mp4 is not None:
            folder = self._run_dir / "videos"
            folder.mkdir(exist_ok=True)
            replace_file(folder / f"evaluation-{env_steps:08d}.mp4", report.video_mp4)

    def language(self, metrics: Mapping[str, float]) -> None:
        self._language = dict(metrics)

    def publishing(self, figures: Mapping[str, float]) -> None:
        """Of the engines and what was sent to them."""
        self._publishing = figures

    def resources(self, sample: Mapping[str, Scalar]) -> None:
        self._resources = dict(sample)
        found = self._gpus.look(sample)
        if found is not None:
            kind, fields = found
            self.event(kind, **fields)

    def search(self, stats: Mapping[str, float]) -> None:
        """Of the search service, where there is one."""
        self._search = dict(stats)

    def replay(self, stats: Mapping[str, float]) -> None:
        """Of all shards; what matters most of it is logged once in a while."""
        self._replay = dict(stats)
        if self._clock() - self._stat_line_at >= STAT_LINE_PERIOD_S:
            self._stat_line_at = self._clock()
            self._table.say(stat_line(stats))
