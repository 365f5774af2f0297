"""Where the time and the memory of a whole run go.

    python benchmarks/run_profile.py                                # mario-quick, 3,000 env steps
    python benchmarks/run_profile.py --preset cartpole --env-steps 1500
    python benchmarks/run_profile.py --env-steps 2500 -- --prior.enabled false

Runs a preset through `launch/train.py` with one evaluation episode at the end, drops the first
`--warm-up` share of the time of acting and learning together, and prints three tables: speeds, the
split of an env step (wall milliseconds of the env actor that takes it), and the processes. Actors
work side by side, so an env step of the run takes the whole of the split divided by the number of
env actors. Words after `--` go to the run, which stays below --output. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.env_speed import measure
from benchmarks.family_watch import FamilyWatch
from benchmarks.measured_span import Span, steady_span
from benchmarks.training_run import (
    UNDISTURBED,
    machine_line,
    n_cores,
    train,
)
from launch.config import Config, overlay, preset_names
from launch.monitoring.json_lines import JsonLinesReader
from launch.monitoring.monitor import HEARTBEAT_FILE
from launch.tracing.time_book import DRIVER

FIGURES = ("cpu_percent", "rss_mb", "uss_mb")  # of each process in a heartbeat
Line = tuple[str, str, str]  # name, figure, remark


def speeds(span: Span, config: Config) -> list[Line]:
    steps, updates = span.rate("global_step"), span.rate("update")
    names = (
        "time_percent/learner/compute",
        "cpu_percent_mean/learner",
        "wait_percent/learner/sample",
        "time_percent/learner/publish",
    )
    compute, cpu, sample, publish = (10.0 * span.mean(name) / updates for name in names)
    simulations = span.mean("search_simulations_per_sec")
    return [
        ("env steps/s", f"{steps:.1f}", f"{config.acting.num_actors} env actors together"),
        ("env steps/s per core", f"{steps / n_cores():.1f}", f"{n_cores()} cores"),
        ("simulations/s", f"{simulations:.0f}", f"{config.search.n_simulations} per env step"),
        ("learner updates/s", f"{updates:.2f}", f"batch {config.learner.batch_size}"),
        ("ms per update", f"{compute:.1f}", f"wall; the learner's CPU time {cpu:.1f}"),
        ("", "", f"besides: waiting for a sample {sample:.1f}, publishing {publish:.1f}"),
        ("samples per insert", f"{span.records[-1].get('ratio_actual'):.2f}", "whole run"),
        *(answers(span) if config.prior.enabled else ()),
        ("measured s", f"{span.seconds:.0f}", f"{span.gained('global_step'):.0f} env steps"),
    ]


def answers(span: Span) -> list[Line]:
    """Where the priors of the searches came from, as shares of their rows."""
    hits, misses = (span.gained(f"prior_cache_{kind}_total") for kind in ("hits", "misses"))
    none = span.gained("prior_fallback_total") / span.gained("prior_rows_total")
    latency_ms = span.mean("prior_latency_ms_mean")
    return [
        ("prior: from the cache", f"{hits / (hits + misses):.0%}", "of the rows looked up"),
        ("prior: none in time", f"{none:.0%}", f"an answer takes {latency_ms:.0f} ms"),
    ]


def env_step_split(span: Span, config: Config, seconds: float) -> list[Line]:
    """Wall milliseconds of an env actor per env step; the game's own parts measured afterwards."""
    per_percent = 10.0 * config.acting.num_actors / span.rate("global_step")

    def ms(name: str) -> float:
        return span.mean(name) * per_percent

    stages = {s: ms(f"time_percent/env_actor/{s}") for s in ("env", "search", "prior_ask", "pull")}
    prior_wait = ms("wait_percent/env_actor/prior")
    rest = 100.0 * per_percent - sum(stages.values()) - prior_wait
    model, tree = (
        stages["search"] * span.mean(f"search_{part}_share", "time_percent/env_actor/search")
        for part in ("model", "tree")
    )
    search = [
        ("search: world model", model, ""),
        ("search: tree", tree, ""),
        ("search: plumbing", stages["search"] - model - tree, "pages, copies, checks"),
    ]
    lines = [
        *_game_parts(stages["env"], config, seconds),
        *search,
        ("prior: build and send", stages["prior_ask"], ""),
        ("prior: wait", prior_wait, ""),
        ("pull weights", stages["pull"], "at the start of each collect call"),
        ("between collect calls", rest, "limiter, calls and segments through Ray, loop"),
        ("whole", 100.0 * per_percent, "wall time per env step of one env actor"),
    ]
    whole = 100.0 * per_percent
    return [(name, f"{value:.3f}", f"{value / whole:4.0%}  {why}") for name, value, why in lines]


def _game_parts(env_ms: float, config: Config, seconds: float) -> list[tuple[str, float, str]]:
    """The stage `env`, split for Mario by what benchmarks/env_speed.py measures on an idle core."""
    if not config.env.is_mario:
        return [("env", env_ms, "game, choice of action, building segments")]
    _, emulation, observation, memory, _ = (
        us / 1e3 for us in measure(config.env.size, config.env.color, seconds)
    )
    by = "by env_speed.py after the run, CPU time"
    return [
        ("env: emulation", emulation, by),
        ("env: observation", observation, by),
        ("env: reading memory", memory, by),
        (
            "env: rest",
            env_ms - emulation - observation - memory,
            "choice, prompts, segments, live view, waiting for a core",
        ),
    ]


def usage_records(run_dir: Path) -> list[dict[str, object]]:
    """What each process took, by time, as `<figure>/<process>`."""
    records = []
    for line in JsonLinesReader(run_dir / HEARTBEAT_FILE).read_new():
        record = {"timestamp": line["timestamp"]}
        # FamilyWatch has what belongs to the driver, one by one.
        children = {n: beat for n, beat in line["processes"].items() if n != DRIVER}
        for name, beat in children.items():
            record |= {f"{figure}/{name}": beat[figure] for figure in FIGURES}
        records.append(record)
    return records


def processes(span: Span, run_dir: Path, family: FamilyWatch) -> list[tuple[str, ...]]:
    """Name, MiB resident and unique (largest of the run), CPU, CPU ms per env step."""
    records = usage_records(run_dir)
    first, last = (float(span.records[at]["timestamp"]) for at in (0, -1))
    measured = Span(tuple(r for r in records if first <= float(r["timestamp"]) <= last))
    whole = Span(tuple(records))
    resident, unique = whole.highest("rss_mb/"), whole.highest("uss_mb/")
    found = [
        (name, resident[name], unique.get(name, math.nan), measured.mean(f"cpu_percent/{name}"))
        for name in resident
    ]
    found += family.rows(span)
    known = [(0.0 if math.isnan(uss) else uss, cpu) for _, _, uss, cpu in found]
    total_cpu = sum(cpu for _, cpu in known if not math.isnan(cpu))
    found.append(("sum", math.nan, sum(uss for uss, _ in known), total_cpu))
    to_ms = 10.0 / span.rate("global_step")
    return [
        (name, _cell(rss), _cell(uss), _cell(cpu), _cell(cpu * to_ms, 2))
        for name, rss, uss, cpu in found
    ]


def _cell(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> None:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column == "" else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mario-quick", choices=preset_names())
    parser.add_argument("--env-steps", type=int, default=3_000, help="length of the run")
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the time to drop")
    parser.add_argument("--seconds", type=float, default=600.0, help="most seconds of learning")
    parser.add_argument("--env-seconds", type=float, default=1.5, help="per part of the game")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("extra", nargs="*", help="after --: settings for the run")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    title = f"run profile, preset {options.preset}, {machine_line()}"
    run_dir = options.output / "profile-run"
    shutil.rmtree(run_dir, ignore_errors=True)
    arguments = [
        f"--preset={options.preset}",
        f"--total-env-steps={options.env_steps}",
        "--control.log-period-s=2",
        *UNDISTURBED,
        *options.extra,
    ]
    family = FamilyWatch(run_dir)
    records = train(run_dir, arguments, seconds=options.seconds, watch=family.look)
    config = overlay(Config(), yaml.safe_load((run_dir / "config.yaml").read_text()), where="run")
    span = steady_span(records, options.warm_up)
    console = Console(width=max(110, Console().width))
    console.print(title)
    print_table(console, "speed", ("", "figure", ""), speeds(span, config))
    split = env_step_split(span, config, options.env_seconds)
    print_table(console, "an env step, ms of its env actor", ("stage", "ms", ""), split)
    columns = ("process", "resident MiB", "unique MiB", "CPU % of a core", "CPU ms per env step")
    rows = processes(span, run_dir, family)
    print_table(
        console,
        "processes; memory is the largest of the run, CPU that of the measured time",
        columns,
        rows,
    )


if __name__ == "__main__":
    main()
