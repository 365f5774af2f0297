"""Would compressing stored frames pay? Real Mario frames, zlib's fastest level against a copy.

    python benchmarks/frame_compression.py

A batch of 64 windows of 5 + 5 steps and a stack of 4 reads 832 frames at random places. Both ways
of reading it alternate in one run, on one core with one thread; medians.
"""

from __future__ import annotations

import os
import statistics
import sys
import zlib
from pathlib import Path
from time import perf_counter

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import actors.envs
from benchmarks.training_run import machine_line

N_FRAMES, BATCH_FRAMES, N_ROUNDS = 3_000, 64 * (5 + 5 + 3), 20


def play(color: str) -> np.ndarray:
    """Single frames [N_FRAMES, C, 64, 64] uint8 of random play."""
    env = gymnasium.make(actors.envs.MARIO_ID, size=64, color=color)
    rng = np.random.default_rng(0)
    frames = [env.reset(seed=0)[0]]
    while len(frames) < N_FRAMES:
        obs, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        frames.append(env.reset()[0] if terminated or truncated else obs)
    env.close()
    return np.stack(frames).reshape(N_FRAMES, -1, 64, 64)


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    print(f"[benchmark] {machine_line()}; zlib level 1")
    print("| frames | bytes, part of raw | ms a batch: raw | ms a batch: compressed | times |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for color in ("gray", "rgb"):
        frames = play(color)
        packed = [zlib.compress(frame.tobytes(), 1) for frame in frames]
        raw, out = torch.from_numpy(frames), np.empty((BATCH_FRAMES, frames[0].size), np.uint8)
        times: dict[str, list[float]] = {"raw": [], "compressed": []}
        for _ in range(N_ROUNDS):
            chosen = rng.integers(N_FRAMES, size=BATCH_FRAMES)
            start = perf_counter()
            expected = raw.index_select(0, torch.from_numpy(chosen))
            middle = perf_counter()
            for row, frame in enumerate(chosen):
                out[row] = np.frombuffer(zlib.decompress(packed[frame]), np.uint8)
            times["compressed"].append(perf_counter() - middle)
            times["raw"].append(middle - start)
            assert np.array_equal(expected.numpy().reshape(out.shape), out)
        ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
        part = sum(map(len, packed)) / frames.nbytes
        slower = ms["compressed"] / ms["raw"]
        print(f"| {color} | {part:.2f} | {ms['raw']:.2f} | {ms['compressed']:.1f} | {slower:.0f} |")


if __name__ == "__main__":
    main()
