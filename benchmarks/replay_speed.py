"""Time of replay's verbs on one core, in microseconds: sample (and its parts), update, add.

    python benchmarks/replay_speed.py                 # 64x64 gray frames, about 15 s
    python benchmarks/replay_speed.py --capacity-mb 4000 --frame-stack 4

The ring is filled before measuring. Parts of sample: "draw" is the sum tree and the importance
weights, "gather" the copy of the observations, "targets" all the rest (masks, n-step returns,
policies, random actions). Medians over the repetitions; the machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from replay_service import (  # noqa: E402
    GameSpec,
    Replay,
    ReplayConfig,
    Segment,
    SegmentHeader,
    TargetConfig,
)

SEGMENT_STEPS = 200


def make_segment(spec: GameSpec, context_steps: int, n_trainable: int = SEGMENT_STEPS) -> Segment:
    rng = np.random.default_rng(0)
    n_steps = n_trainable + context_steps
    none_set = np.zeros(n_steps, dtype=bool)
    obs = rng.integers(0, 256, (n_steps + spec.frame_stack, *spec.obs_shape))
    return Segment(
        header=SegmentHeader("bench", 0, 0, 0, 0, "", 0, "", 0, 0, -1, 1),
        obs=obs.astype(spec.obs_dtype),
        action=rng.integers(0, spec.n_actions, n_steps).astype(np.int16),
        reward=rng.random(n_steps, dtype=np.float32),
        terminated=none_set,
        truncated=none_set,
        policy=np.full((n_steps, spec.n_actions), 1 / spec.n_actions, dtype=np.float16),
        root_value=np.zeros(n_steps, dtype=np.float16),
        priority=rng.random(n_steps, dtype=np.float32),
        n_trainable=n_trainable,
    )


def numbered(segment: Segment, sequence: int, actor: int = 0) -> Segment:
    return replace(segment, header=replace(segment.header, sequence=sequence, actor=actor))


def median_us(work: Callable[[], object], n_repeats: int) -> float:
    work()
    seconds = []
    for _ in range(n_repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1e6 * float(np.median(seconds))


def fill(replay: Replay, segment: Segment) -> int:
    """Add until the ring is full; returns the next free sequence number."""
    sequence = 0
    while replay.add([numbered(segment, sequence)]).n_evicted_positions == 0:
        sequence += 1
    return sequence + 1


def measure(spec: GameSpec, targets: TargetConfig, batch_size: int, capacity_mb: float) -> str:
    replay = Replay(ReplayConfig(capacity_mb=capacity_mb), targets, spec, seed=0)
    segment = make_segment(spec, targets.context_steps)
    sequence = fill(replay, segment)
    rng = np.random.default_rng(1)
    columns, builder = replay.ring.columns, replay._builder

    def draw() -> np.ndarray:
        return replay.sampler.draw(batch_size, replay.n_positions, 0.4, rng)[0]

    def gather() -> object:
        windows = builder.locate(columns, torch.from_numpy(draw()))
        return builder.gather(columns, windows)

    def add() -> None:
        nonlocal sequence
        sequence += 1
        replay.add([numbered(segment, sequence)])

    handles = replay.sample(batch_size).handles
    priorities = rng.random(batch_size)
    sample_us = median_us(lambda: replay.sample(batch_size), 300)
    draw_us = median_us(draw, 300)
    gather_us = median_us(gather, 300) - draw_us
    update_us = median_us(lambda: replay.update_priorities(handles, priorities), 300)
    add_us = median_us(add, 100)
    copied = segment.obs.copy()
    memcpy_us = median_us(lambda: np.copyto(copied, segment.obs), 100)
    name = f"{spec.obs_shape} x{spec.frame_stack}, {replay.n_positions:,} positions"
    return (
        f"| {name} | {batch_size} | {targets.unroll_steps}+{targets.n_step} | {sample_us:.0f} "
        f"| {draw_us:.0f} | {gather_us:.0f} | {sample_us - draw_us - gather_us:.0f} "
        f"| {update_us:.0f} | {add_us:.0f} | {memcpy_us:.0f} |"
    )


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capacity-mb", type=float, default=200.0)
    parser.add_argument("--frame-stack", type=int, default=1)
    return parser.parse_args(words)


def main() -> None:
    args = parse_options(sys.argv[1:])
    torch.set_num_threads(1)
    versions = f"numpy {np.__version__}, torch {torch.__version__}, numba {numba.__version__}"
    sys.stdout.write(f"{platform.processor() or platform.machine()}, {versions}, {commit()}\n\n")
    parts = "sample | draw | gather | targets | update | add | memcpy of its frames"
    sys.stdout.write(f"| frames | B | H+n | {parts} |\n|{'---|' * 10}\n")
    image = GameSpec((1, 64, 64), "uint8", n_actions=7, frame_stack=args.frame_stack)
    vector = GameSpec((4,), "float32", n_actions=2)
    for spec, targets, batch_size in (
        (image, TargetConfig(unroll_steps=5, n_step=5), 64),
        (image, TargetConfig(unroll_steps=10, n_step=5), 64),
        (image, TargetConfig(unroll_steps=5, n_step=5), 256),
        (vector, TargetConfig(unroll_steps=5, n_step=5), 64),
        (vector, TargetConfig(unroll_steps=5, n_step=5), 256),
    ):
        capacity_mb = args.capacity_mb if spec.is_image else args.capacity_mb / 4
        sys.stdout.write(measure(spec, targets, batch_size, capacity_mb) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
