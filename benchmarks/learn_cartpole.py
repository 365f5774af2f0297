"""How fast the whole system learns CartPole-v1: env steps and seconds until it is solved for good.

    python benchmarks/learn_cartpole.py               # three seeds, about 35 minutes on 2 cores
    python benchmarks/learn_cartpole.py --seeds 0 --env-steps 3000

Each seed is one run of `launch/train.py --preset cartpole --runtime ray` (prior off) with a
checkpoint every `--every` env steps. Afterwards every checkpoint plays 20 greedy episodes on seeds
of their own; evaluation therefore costs the run nothing, and "seconds" is wall time since the
command started, Ray's start-up included. A threshold is reached at the first checkpoint from
which on all later ones stay at or above it. Writes curve.png and results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch

from actors.evaluation import EvaluationConfig, EvaluationLoop
from actors.player import PlayerConfig, make_player
from launch.config import Config, parse
from launch.monitoring.json_lines import JsonLinesReader
from learner.checkpoint import checkpoint_weights
from learner.weights import WeightStore

matplotlib.use("Agg")
import matplotlib.pyplot as plt

THRESHOLDS = (195.0, 475.0)
N_EPISODES = 20
EVALUATION_SEED = 20_000_003
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint, played greedily."""

    env_steps: int
    seconds: float  # from the command's start to the checkpoint
    mean_return: float
    min_return: float


def train(run_dir: Path, seed: int, env_steps: int, every: int, extra: list[str]) -> list[str]:
    """One run; returns its arguments. Raises CalledProcessError when it fails."""
    arguments = [
        *("--preset", "cartpole", "--runtime", "ray", "--device", "cpu", "--seed", str(seed)),
        *("--total-env-steps", str(env_steps), "--control.keep-checkpoints", "1000"),
        *("--control.checkpoint-every-env-steps", str(every)),
        *("--evaluation.every-env-steps", str(10 * env_steps), "--evaluation.final-episodes", "1"),
        *extra,
    ]
    command = [sys.executable, "launch/train.py", *arguments, "--run-dir", str(run_dir)]
    with (run_dir.parent / f"{run_dir.name}.log").open("w") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)
    return arguments


def checkpoint_times(run_dir: Path, started: float) -> dict[str, tuple[int, float]]:
    """Checkpoint folder -> (env steps, seconds since `started`)."""
    found = JsonLinesReader(run_dir / "events.jsonl").read_new()
    events = [e for e in found if e["event"] == "checkpoint"]
    return {
        e["path"]: (int(Path(e["path"]).name.split("-")[1]), e["timestamp"] - started)
        for e in events
    }


def play(config: Config, folder: Path) -> list[float]:
    """Returns of N_EPISODES greedy episodes with the weights of one checkpoint."""
    torch.set_num_threads(1)
    store = WeightStore()
    store.push(checkpoint_weights(folder / "learner"))
    player = make_player(
        PlayerConfig(
            env=config.env,
            search=config.search,
            prior=config.prior,
            model=config.model,
            discount=config.targets.discount,
            device="cpu",
        ),
        n_games=N_EPISODES,
        rng=np.random.default_rng(EVALUATION_SEED),
        prior_transport=None,
    )
    evaluation = EvaluationConfig(max_steps=500, video=False)
    loop = EvaluationLoop(player=player, weight_source=store, config=evaluation)
    return list(loop.evaluate(N_EPISODES, video=False).returns)


def reached_for_good(points: list[Point], threshold: float) -> Point | None:
    """The first point from which on no mean return falls below `threshold`."""
    found: Point | None = None
    for point in reversed(points):
        if point.mean_return < threshold:
            break
        found = point
    return found


def measure(run_dir: Path, seed: int, options: argparse.Namespace) -> list[Point]:
    started = time.time()
    arguments = train(run_dir, seed, options.env_steps, options.every, options.extra)
    _, config = parse(arguments)
    times = checkpoint_times(run_dir, started)
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        played = list(pool.map(play, [config] * len(times), map(Path, times)))
    points = []
    for (env_steps, seconds), returns in zip(times.values(), played, strict=True):
        points.append(Point(env_steps, seconds, float(np.mean(returns)), float(np.min(returns))))
        print(
            f"[benchmark] {run_dir.name}: {env_steps} env steps, {seconds:.0f} s: "
            f"mean return {points[-1].mean_return:.1f}, lowest {points[-1].min_return:.0f}",
            flush=True,
        )
    return sorted(points, key=lambda p: p.env_steps)


def draw(curves: dict[int, list[Point]], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for seed, points in curves.items():
        returns = [p.mean_return for p in points]
        axes[0].plot([p.env_steps for p in points], returns, marker="o", label=f"seed {seed}")
        axes[1].plot([p.seconds for p in points], returns, marker="o", label=f"seed {seed}")
    for axis, label in zip(axes, ("env steps", "seconds"), strict=True):
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 510)
        axis.grid(alpha=0.3)
        for threshold in THRESHOLDS:
            axis.axhline(threshold, color="gray", linestyle="--", linewidth=0.8)
    axes[0].set_ylabel(f"mean greedy return, {N_EPISODES} episodes")
    axes[0].legend()
    figure.suptitle("CartPole-v1, launch/train.py --preset cartpole --runtime ray, 2 cores")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def table(curves: dict[int, list[Point]]) -> str:
    rows = [
        "| seed | threshold | env steps | seconds | last mean return |",
        "|---|---|---|---|---|",
    ]
    for seed, points in curves.items():
        for threshold in THRESHOLDS:
            point = reached_for_good(points, threshold)
            steps = f"{point.env_steps:,}" if point else "not reached"
            seconds = f"{point.seconds:.0f}" if point else "-"
            last = points[-1].mean_return
            rows.append(f"| {seed} | {threshold:.0f} | {steps} | {seconds} | {last:.1f} |")
    return "\n".join(rows)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000, help="env steps between checkpoints")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmarks" / "cartpole")
    parser.add_argument("extra", nargs="*", help="more settings for launch/train.py, after --")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    folder = options.output / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    curves = {seed: measure(folder / f"seed-{seed}", seed, options) for seed in options.seeds}
    draw(curves, folder / "curve.png")
    results = {seed: [asdict(p) for p in points] for seed, points in curves.items()}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(table(curves))
    print(
        f"[benchmark] {platform.machine()}, {os.cpu_count()} cores, commit {commit}, "
        f"{time.strftime('%Y-%m-%d')}; files in {folder}"
    )


if __name__ == "__main__":
    main()
