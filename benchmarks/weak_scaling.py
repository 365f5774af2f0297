"""Do n env actors play n times as fast as one, and what does the driver cost?

    python benchmarks/weak_scaling.py                        # 1 to 32 actors, about 12 min, 15 GB
    python benchmarks/weak_scaling.py --actors 1 4 --step-ms 250 --seconds 30

`launch/train.py` with real Ray actors, replay, learner, weight server and monitor. The game sleeps
for as long as emulation and search would take (sleeping_env.py); what is left of search is one
simulation of the smallest world model, some milliseconds. So the cores of one machine can hold many
actors, and what is measured is the way of calls, segments and weights between them, not their work.

Ideal are actors / step time. The clock starts once all actors have been healthy for `--settle`
seconds. Each row says how busy the machine was with anything at all (load average).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured_span import Span
from benchmarks.sleeping_env import STEP_MS
from benchmarks.training_run import UNDISTURBED, machine_line, train
from launch.monitoring.json_lines import JsonLinesReader

GIB = 1 << 30
ACTOR_GIB = 0.3  # resident, most of it shared only within one process
OTHERS_GIB = 3.0  # learner, replay, evaluator, Ray's own

SETTINGS = (
    "--preset=cartpole",
    "--acting.envs-per-actor=1",
    "--acting.segment-length=16",
    "--search.n-simulations=1",
    "--model.embed-dim=8",
    "--model.n-layers=1",
    "--model.n-heads=1",
    "--model.window-steps=2",
    "--model.mlp-hidden=8",
    "--model.support-size=3",
    "--replay.min-positions=32",
    "--limiter.samples-per-insert=1",
    "--learner.batch-size=16",
    "--control.updates-per-call=1",
    "--control.log-period-s=1",
    "--evaluation.max-steps=1",
)


@dataclass(slots=True)
class Watch:
    """Follows one run until it has been measured for long enough."""

    run_dir: Path
    n_actors: int
    settle_s: float
    seconds: float
    loads: list[float] = field(default_factory=list)
    began_at: float | None = None  # wall clock
    ended_at: float | None = None
    driver_s: float = 0.0  # CPU of the driver meanwhile
    _settles_until: float | None = None
    _healthy: set[str] = field(default_factory=set)
    _events: JsonLinesReader | None = None

    def look(self, driver_pid: int) -> bool:
        """Called often; whether the run may end."""
        now = time.time()
        if self._settles_until is None:
            if self._are_all_healthy():
                self._settles_until = now + self.settle_s
        elif self.began_at is None:
            if now >= self._settles_until:
                self.began_at, self.driver_s = now, -_cpu_s(driver_pid)
        else:
            self.loads.append(os.getloadavg()[0])
            if now >= self.began_at + self.seconds:
                self.ended_at = now
                self.driver_s += _cpu_s(driver_pid)
                return True
        return False

    def _are_all_healthy(self) -> bool:
        if self._events is None:
            self._events = JsonLinesReader(self.run_dir / "events.jsonl")
        for event in self._events.read_new():
            if event["event"] == "child_state" and event["child"].startswith("env-actor-"):
                change = self._healthy.add if event["state"] == "healthy" else self._healthy.discard
                change(event["child"])
        return len(self._healthy) == self.n_actors


@dataclass(frozen=True, slots=True)
class Row:
    n_actors: int
    env_steps_per_s: float
    ideal: float
    driver_percent: float  # of one core
    actor_wait_percent: float  # between collect calls
    load: float
    seconds: float


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def measure(n_actors: int, options: argparse.Namespace) -> Row:
    run_dir = options.output / f"{n_actors}-actors"
    shutil.rmtree(run_dir, ignore_errors=True)
    arguments = [
        *SETTINGS,
        *UNDISTURBED,
        f"--env.id=benchmarks.sleeping_env:Sleeping-{options.step_ms}ms-v0",
        f"--acting.num-actors={n_actors}",
        f"--acting.collect-steps={options.collect_steps}",
        f"--total-env-steps={10**8}",
    ]
    watch = Watch(run_dir, n_actors, options.settle, options.seconds)
    records = train(run_dir, arguments, seconds=options.limit, watch=watch.look)
    if watch.began_at is None or watch.ended_at is None:
        raise RuntimeError(
            f"{n_actors} env actors did not play for {options.seconds:g} s within "
            f"{options.limit:g} s of learning; raise --limit, or wait for a quieter machine"
        )
    span = Span(tuple(r for r in records if watch.began_at <= r["timestamp"] <= watch.ended_at))
    return Row(
        n_actors=n_actors,
        env_steps_per_s=span.rate("global_step"),
        ideal=n_actors * 1e3 / options.step_ms,
        driver_percent=100.0 * watch.driver_s / (watch.ended_at - watch.began_at),
        actor_wait_percent=span.mean("wait_percent/env_actor/limiter"),
        load=sum(watch.loads) / len(watch.loads),
        seconds=span.seconds,
    )


def print_table(rows: Sequence[Row], options: argparse.Namespace, console: Console) -> None:
    title = f"weak scaling, {options.step_ms} ms a step, {options.collect_steps} steps a call"
    table = Table(title=title, title_justify="left")
    columns = ("actors", "env steps/s", "ideal", "of ideal", "driver, % of a core")
    for name in (*columns, "actors between calls, %", "load", "s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.n_actors),
            f"{row.env_steps_per_s:.2f}",
            f"{row.ideal:.0f}",
            f"{row.env_steps_per_s / row.ideal:.1%}",
            f"{row.driver_percent:.1f}",
            f"{row.actor_wait_percent:.1f}",
            f"{row.load:.1f}",
            f"{row.seconds:.0f}",
        )
    console.print(table)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--step-ms", type=int, default=500, choices=STEP_MS)
    parser.add_argument("--collect-steps", type=int, default=2, help="env steps of a call")
    parser.add_argument("--settle", type=float, default=15.0, help="s after all are healthy")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured, per cell")
    parser.add_argument("--limit", type=float, default=600.0, help="most s of learning, per cell")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/weak-scaling"))
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    needed_gib = OTHERS_GIB + max(options.actors) * ACTOR_GIB
    free_gib = psutil.virtual_memory().available / GIB
    if free_gib < needed_gib:
        n_most = int((free_gib - OTHERS_GIB) / ACTOR_GIB)
        sys.exit(
            f"error: {max(options.actors)} actors need about {needed_gib:.0f} GiB, {free_gib:.0f} "
            f"are free; at most {n_most} fit now"
        )
    console = Console(width=max(110, Console().width))
    console.print(machine_line())
    rows = []
    for n_actors in options.actors:
        rows.append(measure(n_actors, options))
        print_table(rows[-1:], options, console)
    print_table(rows, options, console)


if __name__ == "__main__":
    main()
