"""Does a language model's prior help a run to learn? Equal env steps, several seeds, arm by arm.

    python benchmarks/prior.py --world coins                      # hours on two cores
    python benchmarks/prior.py --world mario --seeds 0 1 2 --env-steps 6000
    python benchmarks/prior.py --world coins --seeds 0 --env-steps 300 --every 150
    python benchmarks/prior.py --world cooking --adapter runs/benchmarks/prior/.../warm-0

Arms: no prior; an untrained one (the tiny model as made, or --model); one warm-started on
demonstrations and then left as it is; in text worlds also one that starts untrained and is trained
in the loop. The demonstrations of text worlds are solutions of other games than those played;
Mario's are planned in the stage that is played. What they cost is not counted as env steps. Every
seed has a warm start of its own, unless --adapter names one for all.

Each cell is one run of launch/train.py with the serial runtime, so that every question is answered
before its move. The score is the mean over a run's greedy evaluations at the same env steps: of the
return, in Mario of the maximum x. Writes curve.png, with the range over the seeds, and
results.json, and prints a table. Words after -- go to launch/train.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training_run import ROOT, machine_line, python_path, train
from launch.monitoring.json_lines import JsonLinesReader

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIRST_SHOWN = 100  # seed of the games that are demonstrated; those played begin with 0
NO_LIMIT_S = 1e9  # runs end by their env steps
NONE, UNTRAINED, WARM, LOOP = "no prior", "untrained", "warm-started", "trained in the loop"
WITH_PRIOR = ("--prior.enabled", "true", "--prior.prompt.shuffle", "false")


@dataclass(frozen=True, slots=True)
class World:
    """game: of demonstrations and of play; played and shown: what differs between the two.

    shown is asked with the number of games, or of episodes; n_shown is how many there are
    """

    game: tuple[str, ...]
    played: tuple[str, ...]
    shown: Callable[[int], tuple[str, ...]]
    n_shown: int
    arms: tuple[str, ...]
    score: str  # of an evaluation event


def text_world(kind: str, *options: str) -> World:
    game = ("--preset", "textworld", "--env.text.kind", kind, "--env.text.options", *options)
    # Actions are answered in words, which the tiny model can learn, unlike letters, which
    # mean another action in each state; and it needs a wide adapter, trained slowly. Sums over
    # tokens would prefer the shortest words until it has learnt better.
    words = ("--prior.prompt.scoring", "text", "--prior.prompt.max-tokens", "2000",
             "--prior.per-token", "true")  # fmt: skip
    language = (
        *("--language.lora-rank", "32", "--language.lora-alpha", "64"),
        *("--language.learning-rate", "0.001"),
        *("--language.batch-size", "16", "--language.micro-batch-size", "16"),
    )
    return World(
        (*game, *words, *language),
        ("--env.text.seeds", "0", "1", "2"),
        lambda n: (
            *("--source", "textworld"),
            *("--env.text.seeds", *map(str, range(FIRST_SHOWN, FIRST_SHOWN + n))),
        ),
        60,
        (NONE, UNTRAINED, WARM, LOOP),
        "returns",
    )


WORLDS = {
    "coins": text_world("coin_collector", "level=5"),
    "cooking": text_world("cooking", "recipe=1", "take=1"),
    "mario": World(
        ("--preset", "mario-quick", "--language.learning-rate", "0.005"),
        ("--language.enabled", "false"),
        lambda n: ("--source", "mario", "--episodes", str(n)),
        2,
        (NONE, WARM),
        "max_x",
    ),
}
Curve = list[tuple[int, float]]  # env steps and score of each evaluation


def make_warm_start(world: World, folder: Path, seed: int, options: argparse.Namespace) -> None:
    """Into the new folder `folder`. Raises RuntimeError with its output's end if it fails."""
    words = [
        *world.game, *world.shown(options.demonstrations or world.n_shown), *model_words(options),
        "--seed", str(seed),
        "--prior.prompt.shuffle", "false", "--optimizer-steps", str(options.pretrain_steps),
        "--output", str(folder),
    ]  # fmt: skip
    path = folder.with_name(f"{folder.name}.log")
    with path.open("w") as log:
        ended = subprocess.run(
            [sys.executable, "launch/pretrain_prior.py", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": python_path()},
            stdout=log,
            stderr=log,
            check=False,
        )
    if ended.returncode != 0:
        raise RuntimeError(
            f"warm start failed with exit code {ended.returncode}:\n{path.read_text()[-3000:]}"
        )


def warm_start(seed: int, folder: Path, options: argparse.Namespace) -> Path:
    return (options.adapter or folder / f"warm-{seed}").resolve()


def arm_words(arm: str, warm: Path) -> list[str]:
    """The settings that make an arm."""
    return {
        NONE: ["--prior.enabled", "false", "--language.enabled", "false"],
        UNTRAINED: [*WITH_PRIOR, "--language.enabled", "false"],
        WARM: [*WITH_PRIOR, "--language.enabled", "false", "--prior.adapter", str(warm)],
        LOOP: [*WITH_PRIOR, "--language.enabled", "true"],
    }[arm]


def play(world: World, arm: str, seed: int, folder: Path, options: argparse.Namespace) -> Curve:
    """One run; its evaluations."""
    run_dir = folder / f"{arm.replace(' ', '-')}-{seed}"
    words = [
        *world.game, *world.played, *model_words(options), "--runtime", "serial",
        "--seed", str(seed), "--total-env-steps", str(options.env_steps),
        "--evaluation.every-env-steps", str(options.every),
        "--evaluation.n-episodes", str(options.episodes),
        "--evaluation.final-episodes", str(options.episodes), "--evaluation.prior-episodes", "0",
        "--evaluation.video", "false", *options.extra,
        *arm_words(arm, warm_start(seed, folder, options)),
    ]  # fmt: skip
    train(run_dir, words, seconds=NO_LIMIT_S)
    events = JsonLinesReader(run_dir / "events.jsonl").read_new()
    found = [event for event in events if event["event"] == "evaluation"]
    return [(int(event["env_steps"]), float(np.mean(event[world.score]))) for event in found]


def model_words(options: argparse.Namespace) -> list[str]:
    return [] if options.model is None else ["--prior.model", options.model]


def on_grid(curves: Sequence[Curve], every: int) -> tuple[np.ndarray, np.ndarray]:
    """Env steps [P] in multiples of `every`; scores [seeds, P], the first evaluation from there."""
    last = min(curve[-1][0] for curve in curves)
    steps = np.arange(every, last + 1, every)
    rows = [[next(s for at, s in curve if at >= step) for step in steps] for curve in curves]
    return steps, np.array(rows)


def draw(results: Mapping[str, Sequence[Curve]], name: str, every: int, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for arm, curves in results.items():
        steps, scores = on_grid(curves, every)
        (line,) = axis.plot(steps, scores.mean(0), marker="o", markersize=3, label=arm)
        axis.fill_between(steps, scores.min(0), scores.max(0), alpha=0.15, color=line.get_color())
    axis.set_xlabel("env steps")
    axis.set_ylabel("mean maximum x" if WORLDS[name].score == "max_x" else "mean greedy return")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend()
    axis.set_title(f"{name}: mean and range over {len(results[NONE])} seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def table(results: Mapping[str, Sequence[Curve]], every: int) -> str:
    """Final scores, and when each arm reaches what the one without a prior ends with."""
    goal = float(on_grid(results[NONE], every)[1][:, -1].mean())
    rows = [
        "| arm | final score, mean | lowest..highest | mean over the run | env steps to the final "
        "score without a prior |",
        "|---|---|---|---|---|",
    ]
    for arm, curves in results.items():
        steps, scores = on_grid(curves, every)
        final, mean = scores[:, -1], scores.mean(0)
        reached = np.flatnonzero(mean >= goal)
        when = f"{steps[reached[0]]:,}" if len(reached) else "not reached"
        rows.append(
            f"| {arm} | {final.mean():.2f} | {final.min():.2f}..{final.max():.2f} | "
            f"{scores.mean():.2f} | {when} |"
        )
    return "\n".join(rows)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=WORLDS, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=4_000)
    parser.add_argument("--every", type=int, default=400, help="env steps between evaluations")
    parser.add_argument("--episodes", type=int, default=6, help="greedy episodes of an evaluation")
    parser.add_argument("--pretrain-steps", type=int, default=130)
    parser.add_argument("--model", help="prior.model; default: the tiny one")
    parser.add_argument("--arms", nargs="+", help="some of the world's arms; the first one stays")
    parser.add_argument(
        "--demonstrations", type=int, help="solved games, default 60; in Mario episodes, default 2"
    )
    parser.add_argument("--adapter", type=Path, help="a warm start made before, for all seeds")
    parser.add_argument(
        "--also",
        type=Path,
        nargs="+",
        default=[],
        help="results.json of earlier calls with other seeds, for the table",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmarks" / "prior")
    parser.add_argument("extra", nargs="*", help="more settings for launch/train.py, after --")
    options = parser.parse_args(words)
    arms = WORLDS[options.world].arms
    if unknown := sorted(set(options.arms or ()) - set(arms)):
        parser.error(f"--arms: {unknown[0]!r} is not one of {', '.join(arms)}")
    if missing := [path for path in options.also if not path.is_file()]:
        parser.error(f"--also: there is no file {missing[0]}")
    if options.adapter is not None and not options.adapter.is_dir():
        parser.error(f"--adapter: there is no folder {options.adapter}")
    if not 1 <= options.every <= options.env_steps:
        parser.error(f"--every must lie in 1..--env-steps={options.env_steps}, got {options.every}")
    return options


def main() -> None:
    options = parse_options(sys.argv[1:])
    world = WORLDS[options.world]
    arms = [arm for arm in world.arms if arm == NONE or arm in (options.arms or world.arms)]
    folder = options.output / time.strftime(f"{options.world}-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    earlier = [json.loads(path.read_text()) for path in options.also]
    results: dict[str, list[Curve]] = {arm: [c for e in earlier for c in e[arm]] for arm in arms}
    for seed in options.seeds:
        if WARM in arms and options.adapter is None:
            make_warm_start(world, warm_start(seed, folder, options), seed, options)
        for arm in arms:
            results[arm].append(play(world, arm, seed, folder, options))
            print(f"[benchmark] seed {seed}, {arm}: {results[arm][-1]}", flush=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1))
    draw(results, options.world, options.every, folder / "curve.png")
    print(table(results, options.every))
    print(f"[benchmark] {machine_line()}; files in {folder}")


if __name__ == "__main__":
    main()
