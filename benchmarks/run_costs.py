"""What do checkpoints and going on cost a real run?

    python benchmarks/run_costs.py                               # mario-quick, five minutes
    python benchmarks/run_costs.py --seconds 600 -- --preset mario

Starts the run with its own settings for checkpoints, stops it after `--seconds`, and starts the
same command again. Prints the share of the time between the first and the last record for which
checkpoints left the learner without work (`stall_s` of the run's events), the longest such stall,
the longest time that no new work of any kind was begun (`held_s`), seconds to write one, and the
seconds from the start of the process to the first new env step and the first new update, of
both starts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training_run import machine_line
from tests.chaos.real_run import RealRun

STALL_GOAL_S = 1.0
SHARE_GOAL = 0.02
SIDES = {"env step": "global_step", "update": "update"}


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the process's start to the first new env step, and to the first new update."""

    env_step_s: float
    update_s: float


def start(run: RealRun) -> Start:
    before = {name: run.metrics().get(name, 0.0) for name in SIDES.values()}
    began = time.monotonic()
    run.start()
    seconds = {}
    for name in SIDES.values():
        run.wait_until(
            lambda name=name: run.metrics().get(name, 0.0) > before[name], f"a new {name}"
        )
        seconds[name] = time.monotonic() - began
    return Start(seconds["global_step"], seconds["update"])


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("arguments", nargs="*", default=["--preset", "mario-quick"])
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    print(f"[benchmark] {machine_line()}\n[benchmark] {' '.join(options.arguments)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="warpzone-costs-") as folder:
        measure(Path(folder) / "run", options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    endless = ["--device", "cpu", "--total-env-steps", "100000000", "--control.log-period-s", "1"]
    run = RealRun(folder, settings=[*options.arguments, *endless])
    try:
        fresh = start(run)
        time.sleep(options.seconds)
        run.wait_until(lambda: run.events("checkpoint"), "a checkpoint")
        records, saved = run.records(), run.events("checkpoint")
        run.stop()
        resumed = start(run)
        run.stop()
    finally:
        run.kill()
    stalls, holds, writes = ([e[key] for e in saved] for key in ("stall_s", "held_s", "seconds"))
    lasted = records[-1]["timestamp"] - records[0]["timestamp"]
    print(
        f"| checkpoints | in s | learner stalled, share (goal {SHARE_GOAL:.0%}) | longest, s "
        f"(goal {STALL_GOAL_S:g}) | no new work, longest, s | written in, longest, s "
        "| fresh: first env step, update, s | resumed |\n"
        f"|---|---|---|---|---|---|---|---|\n"
        f"| {len(stalls)} | {lasted:.0f} | {sum(stalls) / lasted:.2%} | {max(stalls):.2f} "
        f"| {max(holds):.2f} | {max(writes):.2f} | {fresh.env_step_s:.0f}, "
        f"{fresh.update_s:.0f} | {resumed.env_step_s:.0f}, {resumed.update_s:.0f} |"
    )


if __name__ == "__main__":
    main()
