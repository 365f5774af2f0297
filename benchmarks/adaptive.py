"""Do adaptive schedules help CartPole-v1? The same seeds with and without them, by env steps.

    python benchmarks/adaptive.py                       # four seeds, about an hour on two cores
    python benchmarks/adaptive.py --seeds 0 --env-steps 1000
    python benchmarks/adaptive.py -- --adaptive.stall-looks 4

Both arms are `launch/train.py --preset cartpole` with the serial runtime, one with the schedules
of the step size and of exploration. Those of a seed run side by side, which costs neither of them
env steps. As in learn_cartpole.py every checkpoint then plays 20 greedy episodes. Of each run: the
mean over all checkpoints, which rewards learning early and staying there; the mean and the lowest
of the last LATE checkpoints, of which a run's end has two, a periodic and a final one; env steps
until the mean return is 475 for good; and how often the schedules changed anything. Prints these
and, over the seeds, adaptive - fixed with its 95 % interval, by a bootstrap. Words after -- go to
the adaptive arm. Writes results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actors.intervals import mean_of
from benchmarks.learn_cartpole import Point, measure, reached_for_good
from benchmarks.training_run import ROOT, machine_line
from launch.monitoring.json_lines import JsonLinesReader

FIXED, ADAPTIVE = "fixed", "adaptive"
# Blocks and waits for runs of 10,000 env steps, in which 50 to 200 episodes end; the defaults are
# for runs of millions.
SCHEDULES = (
    *("--adaptive.learning-rate", "true", "--adaptive.exploration", "true"),
    *("--adaptive.episodes-per-look", "10", "--adaptive.stall-looks", "2"),
    *("--adaptive.cooldown-env-steps", "500"),
)
GOAL = 475.0
LATE = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run. Returns are means over 20 greedy episodes.

    solved_at: env steps; None: not for good
    """

    mean: float
    late_mean: float
    late_lowest: float
    solved_at: int | None
    n_changes: int


def outcome(points: Sequence[Point], n_changes: int) -> Outcome:
    returns = [point.mean_return for point in points]
    solved = reached_for_good(list(points), GOAL)
    return Outcome(
        float(np.mean(returns)),
        float(np.mean(returns[-LATE:])),
        float(np.min(returns[-LATE:])),
        None if solved is None else solved.env_steps,
        n_changes,
    )


def play(arm: str, seed: int, folder: Path, options: argparse.Namespace) -> Outcome:
    schedules = [*SCHEDULES, *options.extra] if arm == ADAPTIVE else []
    words = argparse.Namespace(**{**vars(options), "extra": ["--runtime", "serial", *schedules]})
    run_dir = folder / f"{arm}-{seed}"
    points = measure(run_dir, seed, words)
    events = JsonLinesReader(run_dir / "events.jsonl").read_new()
    return outcome(points, sum(event["event"] == "adapted" for event in events))


def table(results: Mapping[str, Mapping[int, Outcome]]) -> str:
    rows = [
        f"| seed | schedules | mean return, all checkpoints | last {LATE} | lowest of these | "
        f"{GOAL:.0f} for good, env steps | changes |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in results[FIXED]:
        for arm in (FIXED, ADAPTIVE):
            o = results[arm][seed]
            solved = "not reached" if o.solved_at is None else f"{o.solved_at:,}"
            rows.append(
                f"| {seed} | {arm} | {o.mean:.1f} | {o.late_mean:.1f} | {o.late_lowest:.1f} | "
                f"{solved} | {o.n_changes} |"
            )
    return "\n".join(rows)


def difference(results: Mapping[str, Mapping[int, Outcome]], name: str) -> str:
    """Adaptive - fixed of one figure, seed by seed."""
    gains = [
        getattr(results[ADAPTIVE][seed], name) - getattr(fixed, name)
        for seed, fixed in results[FIXED].items()
    ]
    found = mean_of(gains)
    interval = "no interval" if found.low is None else f"{found.low:+.1f} to {found.high:+.1f}"
    return f"[benchmark] {name}, adaptive - fixed: {found.value:+.1f} ({interval})"


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13])
    parser.add_argument("--env-steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000, help="env steps between checkpoints")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmarks" / "adaptive")
    parser.add_argument("extra", nargs="*", help="more settings of the adaptive arm, after --")
    options = parser.parse_args(words)
    if not 1 <= options.every <= options.env_steps:
        parser.error(f"--every must lie in 1..--env-steps={options.env_steps}, got {options.every}")
    return options


def main() -> None:
    options = parse_options(sys.argv[1:])
    folder = options.output / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    results: dict[str, dict[int, Outcome]] = {FIXED: {}, ADAPTIVE: {}}
    with ThreadPoolExecutor(len(results)) as pool:
        for seed in options.seeds:
            both = {arm: pool.submit(play, arm, seed, folder, options) for arm in results}
            for arm, future in both.items():
                results[arm][seed] = future.result()
            content = {arm: {s: asdict(o) for s, o in of.items()} for arm, of in results.items()}
            (folder / "results.json").write_text(json.dumps(content, indent=1))
    print(table(results))
    for name in ("mean", "late_mean", "late_lowest"):
        print(difference(results, name))
    print(f"[benchmark] {machine_line()}; files in {folder}")


if __name__ == "__main__":
    main()
