"""Trains an agent: `python launch/train.py --preset mario-quick`; `--help` lists every setting.

Exit codes: 0 finished, 75 stopped and resumable by the same command, 2 bad input, 1 failure,
130 interrupted at once; docs/reliability.md says what each of them leaves behind.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from launch.config import Config, ConfigError, fail, parse, to_dict
from launch.control.construction import Construction
from launch.control.controller import Controller
from launch.control.ending import end_after_failure, how_to_go_on
from launch.control.fleet import Fleet
from launch.control.gpu_alarm import why_fallen_back
from launch.control.ground import this_machine
from launch.control.memory_ladder import with_saved_rung
from launch.control.metadata import library_versions
from launch.control.preflight import preflight, say
from launch.control.reporter import Reporter
from launch.control.resources import placement
from launch.control.run_directory import CONFIG_FILE, RunDirectory, open_run, run_path
from launch.control.runtime import Links, Runtime
from launch.control.serial_runtime import LocalLinks, SerialRuntime
from launch.control.shutdown import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    EXIT_RESUMABLE,
    StopRequest,
)
from launch.control.stepping_down import StepDown, reopen, step_down
from launch.control.warm_start import place_warm_start
from launch.dashboard.page_process import PageProcess
from launch.monitoring.destinations import destinations
from launch.monitoring.gpu_reader import GpuReader
from launch.monitoring.json_lines import Scalar
from launch.monitoring.live_table import LiveTable, print_summary
from launch.monitoring.metrics_writer import METRICS_FILE, MetricsWriter
from launch.monitoring.record_tail import last_record
from launch.reports.at_end import leave_report
from launch.reports.page import REPORT_FILE
from launch.tracing.timing_tree import timing_tree
from launch.tracing.watched_runtime import WatchedRuntime
from replay_service import GameSpec


def main(arguments: Sequence[str] | None = None) -> int:
    preset, config = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console()
    stop = StopRequest(config.control.max_hours)
    stop.install()
    try:
        spec, device = preflight(config, console)
        config = with_saved_rung(config, run_path(preset, config) / CONFIG_FILE)
        page = PageProcess(config.dashboard)
        run = open_run(preset, config)
        goes_on = run.resume is not None and not run.resume.relaxed
        place_warm_start(config, run.path, goes_on=goes_on)
    except ConfigError as error:
        fail(str(error))
    address = page.show(run.path)
    if address is not None:
        say(console, f"live page: {address}")
    try:
        return _train_stepping_down(preset, config, spec, device, run, stop, console)
    finally:
        page.close()


def _train_stepping_down(
    preset: str,
    config: Config,
    spec: GameSpec,
    device: str,
    run: RunDirectory,
    stop: StopRequest,
    console: Console,
) -> int:
    """Trains, with less each time that it turns out to be too much."""
    while True:
        try:
            if stop.requested:
                return EXIT_INTERRUPTED
            code = train(config, spec, device, run, stop, console)
            if code != EXIT_INTERRUPTED and leave_report(run.path):
                say(console, f"report: {run.path / REPORT_FILE}")
            return code
        except StepDown as step:
            config = step.config
        finally:
            run.close()
        # The children of a serial run are objects here, held by cycles: they go before the next.
        gc.collect()
        try:
            run = reopen(run, preset, config)
        except ConfigError as error:
            fail(str(error))


def train(
    config: Config,
    spec: GameSpec,
    device: str,
    run: RunDirectory,
    stop: StopRequest,
    console: Console,
) -> int:
    """Runs to the end or to a stop; returns the exit code. Leaves no child behind."""
    say(console, f"run directory {run.path}, {_source(run)}")
    try:
        plain_runtime, links = _start_runtime(config, device)
    except SystemExit as left:
        if left.code != signal.SIGTERM:
            raise
        return EXIT_INTERRUPTED  # by Ray's own handler, which it has while it starts
    try:
        period_s = config.control.log_period_s
        runtime = WatchedRuntime(plain_runtime, config.trace, run.path, period_s)
        stop.install()
        if stop.requested:
            return EXIT_INTERRUPTED
        fleet = Fleet(config, spec, runtime, links, run_dir=run.path, device=device)
        try:
            return _run(config, fleet, runtime, run, stop, console, device)
        finally:
            console.print(timing_tree(runtime.book, runtime.now()))
    finally:
        plain_runtime.shutdown()


def _run(
    config: Config,
    fleet: Fleet,
    runtime: WatchedRuntime,
    run: RunDirectory,
    stop: StopRequest,
    console: Console,
    device: str,
) -> int:
    started = time.monotonic()
    fallen_back = why_fallen_back(
        config.device,
        device,
        n_gpus=GpuReader().read().count,
        was_on_gpu=_was_on_gpu(run.path),
    )
    with (
        MetricsWriter(
            run.path,
            resumed_at_step=run.resumed_at_step,
            sinks=destinations(
                config.monitoring,
                run.path,
                to_dict(config),
                goes_on=run.resume is not None,
                on_ray=config.runtime == "ray",
            ),
            rotation=config.monitoring.rotation,
        ) as writer,
        LiveTable(f"WarpZone {run.path}", console) as table,
    ):
        say(console, f"logs in {run.path}; tensorboard --logdir {writer.tensorboard_dir}")
        reporter = Reporter(
            run.path,
            writer,
            table,
            period_s=config.control.log_period_s,
            construction=Construction(
                config.acting.num_actors, config.acting.envs_per_actor, time.monotonic
            ),
        )
        reporter.event("started", versions=library_versions())
        reporter.device(device, fallen_back)
        reporter.times = runtime.shares
        controller = Controller(config, runtime, fleet, run, reporter, stop)
        with runtime.watching(reporter.event, table.busy):
            try:
                controller.run()
            except Exception as failure:  # of whatever kind: what was learned must not be lost
                step_down(config, controller.progress, reporter, failure)
                end_after_failure(controller, reporter, failure)
                return EXIT_FAILED
    print_summary(reporter.last_metrics, f"WarpZone {run.path}", console)
    _write_summary(run, controller, reporter, time.monotonic() - started)
    if not controller.finished:
        say(console, f"stopped by {stop.reason}; {how_to_go_on(config)}")
        return EXIT_RESUMABLE
    if not reporter.last_metrics.get("update"):
        say(console, _why_unlearned(config, reporter.last_metrics))
    return EXIT_FINISHED


def _why_unlearned(config: Config, metrics: Mapping[str, Scalar]) -> str:
    """For a run that was too short: the newest steps of every segment are no positions yet."""
    n_positions = int(metrics.get("replay_positions") or 0)
    return (
        f"nothing was learned: replay holds {n_positions} positions, and "
        f"learning begins with replay.min_positions={config.replay.min_positions}; raise "
        f"total_env_steps={config.total_env_steps}, or lower min_positions"
    )


def _start_runtime(config: Config, device: str) -> tuple[Runtime, Links]:
    if config.runtime == "serial":
        return SerialRuntime(), LocalLinks()
    # Ray is imported only where it is used: `--runtime serial` works without it.
    from launch.control.ray_runtime import RayLinks, RayRuntime

    needs = placement(config, device)
    gpus = this_machine().num_gpus if needs.num_gpus else 0.0  # all, since shares of one can't move
    try:
        runtime = RayRuntime(config.address, num_cpus=needs.num_cpus, num_gpus=gpus)
    except ConnectionError as error:
        fail(
            f"address {config.address!r} leads to no Ray cluster ({error}); check it, or leave "
            "--address and RAY_ADDRESS out to start Ray on this machine"
        )
    return runtime, RayLinks()


def _was_on_gpu(run_dir: Path) -> bool:
    """This run, when it last wrote a record."""
    record, _ = last_record(run_dir / METRICS_FILE)
    return bool(record.get("learner_on_gpu"))


def _source(run: RunDirectory) -> str:
    """What the run goes on from, for people."""
    resume = run.resume
    if resume is None:
        return "starting from nothing"
    kind = "with what fits of" if resume.relaxed else "from"
    return (
        f"going on {kind} {resume.source}, found by {resume.found}, {resume.env_steps:,} env steps"
    )


def _write_summary(
    run: RunDirectory, controller: Controller, reporter: Reporter, seconds: float
) -> None:
    progress = controller.progress
    run.write_summary(
        {
            "finished": controller.finished,
            "env_steps": progress.env_steps,
            "updates": progress.updates,
            "episodes": progress.episodes,
            "evaluations": progress.evaluations,
            "restarts": progress.restarts,
            "seconds": seconds,
            "metrics": {
                name: value
                for name, value in reporter.last_metrics.items()
                if isinstance(value, int | float)
            },
        }
    )


if __name__ == "__main__":
    sys.exit(main())
