"""What does the controller cost with 1,000 and 10,000 env actors?

    python benchmarks/simulated_scale.py                                  # about 6 min, 2 GB
    python benchmarks/simulated_scale.py --actors 1000 --seconds 600 --process-hours 1
    python benchmarks/simulated_scale.py --actors 1000 --profile
    python benchmarks/simulated_scale.py --actors 1000 --ray              # real calls, real time

The real controller with its limiter, supervision, versions, checkpoints, metrics and event files
against children that only say how long they took (simulated_children.py), in virtual time
(simulated_runtime.py). Processes die, hang and lose their nodes at the given rates. Time also
passes while the controller works, so one that can't keep up shows as fewer env steps.

Counted is the CPU time of the controller's thread without the simulation's own; what Ray's client
costs in the same process is not in it. With `--ray` it is: one Ray actor answers for all children,
in real time, and counted is all CPU time of the driver's process. Each row is a process of its own.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.hosted_runtime import HostedRuntime
from benchmarks.simulated_children import Costs, SimulatedChildren
from benchmarks.simulated_runtime import SECONDS_PER_HOUR, Faults, Mark, SimulatedRuntime
from benchmarks.training_run import machine_line
from launch.config import Config, load_preset
from launch.control.controller import Controller
from launch.control.fleet import Fleet
from launch.control.reporter import Reporter
from launch.control.run_directory import open_run
from launch.control.serial_runtime import LocalLinks
from launch.control.shutdown import StopRequest
from launch.monitoring.live_table import LiveTable
from launch.monitoring.metrics_writer import MetricsWriter
from replay_service import GameSpec

SPEC = GameSpec((1, 64, 64), "uint8", 7, 2)
NO_LIMIT = 2**40
PROFILE_LINES = 30


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulated run."""

    n_actors: int
    seconds: float  # virtual
    warm_up: float  # virtual seconds that are not counted
    faults: Faults
    costs: Costs
    seed: int
    actors_per_node: int
    profiles: bool = False
    counts_driver_time: bool = True
    through_ray: bool = False  # real calls in real time, without faults


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one simulated run came to, over its counted time."""

    n_actors: int
    seconds: float
    n_shards: int
    env_steps_per_s: float
    ideal_env_steps_per_s: float
    calls_per_s: float
    turns_per_s: float
    driver_percent: float  # of one core
    us_per_call: float
    rss_mb: float  # of the whole process, simulation included
    grown_mb: float  # since the fleet stood
    n_faults: int
    n_restarts: int
    file_mb_per_h: float  # metrics and events
    env_steps: int  # over the whole run
    profile: str = ""


class SimulatedLinks(LocalLinks):
    """Children that reach nobody."""

    def weight_source(self, server: object) -> None: ...
    def weight_sink(self, server: object) -> None: ...
    def batch_source(self, *needs: object) -> None: ...


def config_of(cell: Cell, run_dir: Path) -> Config:
    """The preset `mario` for that many actors; the limiter lets play and learning go on alike."""
    preset = load_preset("mario")
    n_shards = max(1, math.ceil(cell.n_actors / 500))
    steps_per_s = cell.n_actors / cell.costs.env_step_s
    samples_per_s = preset.learner.batch_size / cell.costs.update_s
    return replace(
        preset,
        acting=replace(preset.acting, num_actors=cell.n_actors),
        prior=replace(preset.prior, enabled=False),
        replay=replace(preset.replay, num_shards=n_shards),
        limiter=replace(preset.limiter, samples_per_insert=0.95 * samples_per_s / steps_per_s),
        evaluation=replace(preset.evaluation, every_env_steps=NO_LIMIT),
        control=replace(
            preset.control,
            checkpoint_every_env_steps=NO_LIMIT,
            checkpoint_every_min=5.0,
            max_hours=cell.seconds / SECONDS_PER_HOUR,
        ),
        total_env_steps=NO_LIMIT,
        run_dir=run_dir,
    )


def simulate(cell: Cell, run_dir: Path, runtime: SimulatedRuntime | None = None) -> Outcome:
    """Runs one cell in this process. runtime: in place of the one that the cell names"""
    config = config_of(cell, run_dir)
    runtime = runtime_of(cell) if runtime is None else runtime
    stop = StopRequest(config.control.max_hours, runtime.now)
    run = open_run("simulated", config)
    process = psutil.Process()
    quiet = Console(file=StringIO())
    try:
        fleet = Fleet(config, SPEC, runtime, SimulatedLinks(), run_dir=run.path, device="cpu")
        with MetricsWriter(run.path) as writer, LiveTable("", quiet, runtime.now) as table:
            period_s = config.control.log_period_s
            reporter = Reporter(run.path, writer, table, period_s=period_s, clock=runtime.now)
            controller = Controller(config, runtime, fleet, run, reporter, stop)
            before_mb = process.memory_info().rss / 1e6
            with cProfile.Profile() if cell.profiles else _nothing() as profile:
                controller.run()
        n_bytes = sum(path.stat().st_size for path in run.path.glob("*.jsonl"))
    finally:
        run.close()
        runtime.shutdown()
    rss_mb = process.memory_info().rss / 1e6
    first, last = _counted(runtime.marks, cell)
    seconds, driver_s = last.at - first.at, last.driver_s - first.driver_s
    n_answers = last.n_answers - first.n_answers
    return Outcome(
        n_actors=cell.n_actors,
        seconds=seconds,
        n_shards=config.replay.num_shards,
        env_steps_per_s=(last.env_steps - first.env_steps) / seconds,
        ideal_env_steps_per_s=cell.n_actors / cell.costs.env_step_s,
        calls_per_s=n_answers / seconds,
        turns_per_s=(last.n_turns - first.n_turns) / seconds,
        driver_percent=100.0 * driver_s / seconds,
        us_per_call=1e6 * driver_s / n_answers,
        rss_mb=rss_mb,
        grown_mb=rss_mb - before_mb,
        n_faults=runtime.n_faults,
        n_restarts=controller.progress.restarts,
        file_mb_per_h=n_bytes / 1e6 * SECONDS_PER_HOUR / runtime.now(),
        env_steps=controller.progress.env_steps,
        profile="" if profile is None else _dearest(profile),
    )


def runtime_of(cell: Cell) -> SimulatedRuntime | HostedRuntime:
    if cell.through_ray:
        return HostedRuntime(cell.costs, cell.seed)
    rng = np.random.default_rng(cell.seed)
    return SimulatedRuntime(
        children=SimulatedChildren(rng, cell.costs),
        rng=rng,
        faults=cell.faults,
        n_nodes=math.ceil(cell.n_actors / cell.actors_per_node),
        counts_driver_time=cell.counts_driver_time,
    )


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def _counted(marks: Sequence[Mark], cell: Cell) -> tuple[Mark, Mark]:
    """First and last moment of the time that counts."""
    counted = [mark for mark in marks if cell.warm_up <= mark.at <= cell.seconds]
    return counted[0], counted[-1]


def _dearest(profile: cProfile.Profile) -> str:
    text = StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(PROFILE_LINES)
    return text.getvalue()


def run_cell(cell: Cell) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return simulate(cell, Path(folder) / "run")


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table(title="the controller, simulated fleet, virtual time", title_justify="left")
    columns = ("actors", "shards", "counted s", "env steps/s", "of ideal", "calls/s", "turns/s")
    columns += ("driver, % of a core", "us a call", "RSS MB", "grown MB", "faults", "restarts")
    for name in (*columns, "files, MB/h"):
        table.add_column(name, justify="right")
    for o in outcomes:
        table.add_row(
            f"{o.n_actors:,}",
            str(o.n_shards),
            f"{o.seconds:.0f}",
            f"{o.env_steps_per_s:,.0f}",
            f"{o.env_steps_per_s / o.ideal_env_steps_per_s:.1%}",
            f"{o.calls_per_s:,.0f}",
            f"{o.turns_per_s:,.0f}",
            f"{o.driver_percent:.1f}",
            f"{o.us_per_call:.0f}",
            f"{o.rss_mb:,.0f}",
            f"{o.grown_mb:,.0f}",
            str(o.n_faults),
            str(o.n_restarts),
            f"{o.file_mb_per_h:,.0f}",
        )
    console.print(table)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", nargs="+", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=300.0, help="virtual, per cell")
    parser.add_argument("--warm-up", type=float, default=60.0, help="virtual seconds not counted")
    parser.add_argument("--process-hours", type=float, default=Faults().process_hours)
    parser.add_argument("--node-hours", type=float, default=Faults().node_hours)
    parser.add_argument("--actors-per-node", type=int, default=10)
    parser.add_argument("--env-step-ms", type=float, default=1e3 * Costs().env_step_s)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true", help="through real Ray, in real time")
    parser.add_argument("--profile", action="store_true", help="say where the time went")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    faults = Faults(process_hours=options.process_hours, node_hours=options.node_hours)
    cells = [
        Cell(
            n_actors=n_actors,
            seconds=options.seconds,
            warm_up=options.warm_up,
            faults=faults,
            costs=Costs(env_step_s=options.env_step_ms / 1e3),
            seed=options.seed,
            actors_per_node=options.actors_per_node,
            profiles=options.profile,
            through_ray=options.ray,
        )
        for n_actors in options.actors
    ]
    console = Console(width=max(150, Console().width))
    console.print(machine_line())
    spawn = get_context("spawn")
    with spawn.Pool(1, maxtasksperchild=1) as pool:
        outcomes = pool.map(run_cell, cells, chunksize=1)
    print_table(outcomes, console)
    for outcome in outcomes:
        if outcome.profile:
            console.print(outcome.profile, markup=False)


if __name__ == "__main__":
    main()
