"""Is a run faster when acting and learning overlap than when they take turns?

    python benchmarks/overlap.py                                  # CartPole, about 11 min, 2 cores
    python benchmarks/overlap.py --preset mario-quick --num-envs 8 --rollout 20 40 --seconds 90
    python benchmarks/overlap.py --num-envs 4 --rollout 20 -- --limiter.samples-per-insert 16

For every cell of the matrix (environments in all x rollout, the length of a segment) two runs of
`launch/train.py` that differ in `schedule.off_policy_degree` only: same preset, simulations,
samples per insert and seed. Modes alternate, so that slow drift of the machine hits both. Of the
time of both together `--warm-up-fraction` is dropped; the rest is measured by differences of the
run's counters. Evaluations and checkpoints are put off. Words after `--` go to both runs.

Prints one table and the ratio overlapped / alternating per cell; writes overlap.csv, overlap.png
and the runs themselves below --output.
"""

from __future__ import annotations

import argparse
import csv
import math
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measured_span import Record, steady_span
from benchmarks.training_run import UNDISTURBED, machine_line, train
from launch.config import load_preset, preset_names

MODES = ("alternating", "overlapped")
MIN_ROUNDS = 4  # segments of every environment; over fewer, steps/s depends on where a burst falls
NO_LIMIT = 1_000_000_000  # env steps; `--seconds` ends such a run
Cell = tuple[int, int]  # environments in all, rollout
PANELS = (
    ("steps_per_sec_mean", "env steps/s"),
    ("updates_per_sec_mean", "updates/s"),
    ("learner_busy_percent", "learner busy %"),
    ("actor_busy_percent", "actors busy %"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run, and one line of the CSV. Percentages are of the measured wall time.

    rollout: env steps of a segment; gpu_util_mean_window: percent, None without a GPU.
    Actors: mean over the env actors. Waiting for the other side is what is left after work and the
    waits that are timed; it includes the way of a call through Ray.
    """

    mode: str
    num_envs: int
    rollout: int
    steps_per_sec_mean: float
    updates_per_sec_mean: float
    replay_fill_final: float
    gpu_util_mean_window: float | None
    duration_sec: float
    learner_busy_percent: float
    actor_busy_percent: float
    learner_waits_for_actors_percent: float
    learner_waits_for_replay_percent: float
    actors_wait_for_learner_percent: float
    actors_wait_for_prior_percent: float


def report_row(mode: str, cell: Cell, records: Sequence[Record], warm_up: float) -> Row:
    """What one run's metric records come to. Raises ValueError if they are too few."""
    span = steady_span(records, warm_up)
    # The logged `wait_percent/*/limiter` is cut off at 0 in each window, while a call's seconds all
    # fall into the window in which it ends; over short windows its mean would be too high.
    learner_busy = sum(span.mean(f"time_percent/learner/{s}") for s in ("compute", "publish"))
    sample_wait = span.mean("wait_percent/learner/sample")
    stages = ("env", "search", "prior_ask", "pull")
    actor_busy = sum(span.mean(f"time_percent/env_actor/{stage}") for stage in stages)
    prior_wait = span.mean("wait_percent/env_actor/prior")
    gpu_util = span.mean("gpu_util_mean_window")
    fills = [r["replay_fill_rate"] for r in records if r.get("replay_fill_rate") is not None]
    return Row(
        mode=mode,
        num_envs=cell[0],
        rollout=cell[1],
        steps_per_sec_mean=span.rate("global_step"),
        updates_per_sec_mean=span.rate("update"),
        replay_fill_final=float(fills[-1]) if fills else 0.0,
        gpu_util_mean_window=None if math.isnan(gpu_util) else gpu_util,
        duration_sec=span.seconds,
        learner_busy_percent=learner_busy,
        actor_busy_percent=actor_busy,
        learner_waits_for_actors_percent=max(0.0, 100.0 - learner_busy - sample_wait),
        learner_waits_for_replay_percent=sample_wait,
        actors_wait_for_learner_percent=max(0.0, 100.0 - actor_busy - prior_wait),
        actors_wait_for_prior_percent=prior_wait,
    )


def mean_of(rows: Iterable[Row], cell: Cell, mode: str, column: str) -> float:
    """Mean of `column` over the repeats of one cell and mode."""
    wanted = (*cell, mode)
    repeats = [row for row in rows if (row.num_envs, row.rollout, row.mode) == wanted]
    return statistics.fmean(getattr(row, column) for row in repeats)


def ratio(rows: Sequence[Row], cell: Cell, column: str) -> float:
    """Overlapped over alternating."""
    alternating, overlapped = (mean_of(rows, cell, mode, column) for mode in MODES)
    return overlapped / alternating if alternating > 0 else float("nan")


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in rows:
            values = asdict(row).items()
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in values})


def write_plot(path: Path, rows: Sequence[Row], cells: Sequence[Cell], title: str) -> None:
    """One panel a figure, one group of bars a cell, one bar a mode."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(3.6 * len(PANELS), 3.8))
    for panel, (column, label) in zip(panels, PANELS, strict=True):
        for index, mode in enumerate(MODES):
            heights = [mean_of(rows, cell, mode, column) for cell in cells]
            places = [place + (index - 0.5) * 0.4 for place in range(len(cells))]
            bars = panel.bar(places, heights, width=0.38, label=mode, color=f"C{index}")
            panel.bar_label(bars, fmt="%.3g", fontsize=8)
        panel.set_xticks(range(len(cells)), [f"{n} envs\nrollout {s}" for n, s in cells])
        panel.set_title(label, fontsize=10)
        panel.margins(y=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(MODES), frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_report(rows: Sequence[Row], cells: Sequence[Cell], title: str) -> None:
    table = Table(title=title, caption="waits: for actors + for replay; for learner + for prior")
    names = "envs,rollout,mode,steps/s,updates/s,learner busy,waits,actor busy,waits,fill,s"
    for name in names.split(","):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for r in rows:
        table.add_row(
            str(r.num_envs),
            str(r.rollout),
            r.mode,
            f"{r.steps_per_sec_mean:.1f}",
            f"{r.updates_per_sec_mean:.2f}",
            f"{r.learner_busy_percent:.0f}%",
            f"{r.learner_waits_for_actors_percent:.0f}+{r.learner_waits_for_replay_percent:.0f}%",
            f"{r.actor_busy_percent:.0f}%",
            f"{r.actors_wait_for_learner_percent:.0f}+{r.actors_wait_for_prior_percent:.0f}%",
            f"{r.replay_fill_final:.1%}",
            f"{r.duration_sec:.0f}",
        )
    console = Console(width=max(110, Console().width))
    console.print(table)
    for cell in cells:
        steps = ratio(rows, cell, "steps_per_sec_mean")
        updates = ratio(rows, cell, "updates_per_sec_mean")
        console.print(
            f"{cell[0]} envs, rollout {cell[1]}: overlapped / alternating "
            f"{steps:.2f} in env steps/s, {updates:.2f} in updates/s"
        )
        mine = [r for r in rows if (r.num_envs, r.rollout) == cell]
        rounds = min(r.steps_per_sec_mean * r.duration_sec for r in mine) / (cell[0] * cell[1])
        if rounds < MIN_ROUNDS:
            console.print(
                f"  too short: {rounds:.1f} rounds of segments; positions come, learning follows, "
                "in bursts of a round, so raise --seconds or lower limiter.samples-per-insert"
            )


def run_arguments(options: argparse.Namespace, cell: Cell, mode: str) -> list[str]:
    """The command line of one run; the modes differ in one setting."""
    num_actors = load_preset(options.preset).acting.num_actors
    return [
        f"--preset={options.preset}",
        f"--envs-per-actor={cell[0] // num_actors}",
        f"--acting.segment-length={cell[1]}",
        f"--schedule.off-policy-degree={-1 if mode == 'overlapped' else 0}",
        f"--total-env-steps={options.env_steps}",
        "--control.log-period-s=1",
        *UNDISTURBED,
        "--evaluation.max-steps=20",
        *options.extra,
    ]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} must lie in [0, 1)")
    return value


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="cartpole", choices=preset_names())
    parser.add_argument("--num-envs", nargs="+", type=positive, default=[4, 8], help="in all")
    parser.add_argument(
        "--rollout", nargs="+", type=positive, default=[20, 40], help="env steps of a segment"
    )
    parser.add_argument("--seconds", type=float, default=45.0, help="of learning, per run")
    parser.add_argument("--env-steps", type=int, default=NO_LIMIT, help="most steps of a run")
    parser.add_argument(
        "--warm-up-fraction", type=fraction, default=0.3, help="of the time to drop"
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs per cell and mode")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/overlap"))
    parser.add_argument("extra", nargs="*", help="after --: settings for both runs")
    options = parser.parse_args(words)
    num_actors = load_preset(options.preset).acting.num_actors
    for num_envs in options.num_envs:
        if num_envs % num_actors:
            parser.error(f"{num_envs} environments do not divide among {num_actors} env actors")
    return options


def main() -> None:
    options = parse_options(sys.argv[1:])
    cells = list(product(options.num_envs, options.rollout))
    title = f"overlap, preset {options.preset}, {machine_line()}"
    rows: list[Row] = []
    for repeat in range(options.repeats):
        for cell in cells:
            for mode in MODES if repeat % 2 == 0 else MODES[::-1]:
                name = f"{cell[0]}x{cell[1]}-{mode}-{repeat}"
                run_dir = options.output / "overlap-runs" / name
                shutil.rmtree(run_dir, ignore_errors=True)
                arguments = run_arguments(options, cell, mode)
                records = train(run_dir, arguments, seconds=options.seconds)
                rows.append(report_row(mode, cell, records, options.warm_up_fraction))
                write_csv(options.output / "overlap.csv", rows)
    write_plot(options.output / "overlap.png", rows, cells, title)
    print_report(rows, cells, title)


if __name__ == "__main__":
    main()
