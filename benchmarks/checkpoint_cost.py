"""What does a checkpoint of replay cost: the first one, and those that share its frames?

    python benchmarks/checkpoint_cost.py                # 100,000 positions of 64x64 gray
    python benchmarks/checkpoint_cost.py --positions 20000 --folder /mnt/disk

Fills a ring, saves it, adds what comes in between two checkpoints, saves again beside it, and
loads. Seconds include syncing to disk; sums are those that the checkpoint store makes of new files.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.replay_speed import make_segment, numbered
from benchmarks.training_run import machine_line
from replay_service import GameSpec, Replay, ReplayConfig, TargetConfig

SPEC = GameSpec((1, 64, 64), "uint8", n_actions=7, frame_stack=4)
TARGETS = TargetConfig(unroll_steps=5, n_step=5)
SEGMENT_STEPS = 200
BETWEEN = 2_000  # positions from one checkpoint to the next, as control.checkpoint_every_env_steps


def fill(replay: Replay, first: int, n_positions: int) -> int:
    """Adds segments numbered from `first` on; the next number."""
    template = make_segment(SPEC, TARGETS.context_steps, SEGMENT_STEPS)
    for sequence in range(first, first + n_positions // SEGMENT_STEPS):
        replay.add([numbered(template, sequence)])
    return first + n_positions // SEGMENT_STEPS


def new_bytes(folder: Path) -> tuple[int, float]:
    """Bytes of files that no other folder shares, and the seconds to sum them up."""
    files = [path for path in folder.iterdir() if path.stat().st_nlink == 1]
    start = perf_counter()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return sum(path.stat().st_size for path in files), perf_counter() - start


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    torch.set_num_threads(1)
    config = ReplayConfig(capacity_mb=1.3 * options.positions * 4_300 / 1e6, min_positions=1)
    replay = Replay(config, TARGETS, SPEC, 0)
    following = fill(replay, 0, options.positions)
    print(f"[benchmark] {machine_line()}; {replay.n_positions:,} positions")
    print("| checkpoint | s to write | s to sum up | MB written | MB in all |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        previous = None
        for label in ("first", "next"):
            folder = Path(name) / label
            start = perf_counter()
            replay.save(folder, previous)
            seconds = perf_counter() - start
            written, summing = new_bytes(folder)
            total = sum(path.stat().st_size for path in folder.iterdir())
            print(
                f"| {label} | {seconds:.2f} | {summing:.2f} | {written / 1e6:,.0f} | "
                f"{total / 1e6:,.0f} |"
            )
            previous = folder
            following = fill(replay, following, BETWEEN)
        restored = Replay(config, TARGETS, SPEC, 0)
        start = perf_counter()
        restored.load(folder)
        print(f"\nLoading takes {perf_counter() - start:.2f} s.")


if __name__ == "__main__":
    main()
