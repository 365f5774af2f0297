"""How fast one core steps Mario, and where the time goes.

    PYTHONPATH=. python benchmarks/env_speed.py [--seconds 1.5]

One row per picture size and colour: agent steps (4 frames) per second of CPU time in the fastest
block, and the microseconds of a step spent in emulation, in making the observation and in reading
memory. CPU time of this thread is taken, so other work on the machine disturbs little. Takes about
20 s at the default.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium
import numpy as np

import actors.envs
from actors.envs.emulator import nes_py_folder
from actors.envs.mario_env import MarioEnv
from actors.envs.mario_ram import read_state, read_tiles

BLOCK_STEPS = 20
CASES = ((64, "gray"), (64, "rgb"), (84, "gray"), (96, "gray"), (96, "rgb"))


def best_us(call: Callable[[], object], n_calls: int, seconds: float) -> float:
    """Fewest microseconds of CPU time per call over blocks of n_calls."""
    best, deadline = np.inf, time.thread_time() + seconds
    while time.thread_time() < deadline:
        start = time.thread_time()
        for _ in range(n_calls):
            call()
        best = min(best, (time.thread_time() - start) / n_calls)
    return best * 1e6


def measure(size: int, color: str, seconds: float) -> tuple[float, float, float, float, float]:
    """(step, emulation, observation, memory and info, prompt) in microseconds."""
    env = gymnasium.make(actors.envs.MARIO_ID, size=size, color=color, stall_steps=100_000)
    mario = env.unwrapped
    assert isinstance(mario, MarioEnv)
    mario.reset(seed=0)
    rng = np.random.default_rng(0)

    def step() -> None:
        if any(mario.step(int(rng.integers(mario.action_space.n)))[2:4]):
            mario.reset()

    console = mario._running()  # the parts of a step are private to it
    emulation = best_us(lambda: console.run(0, mario.frame_skip), BLOCK_STEPS, seconds)
    observation = best_us(mario._observe, 200, seconds / 4)

    def read() -> None:
        state = read_state(console.ram)
        read_tiles(console.ram, state.x)

    memory = best_us(read, 200, seconds / 4)
    prompt = best_us(mario.prompt, 200, seconds / 4)
    whole = best_us(step, BLOCK_STEPS, seconds)
    env.close()
    return whole, emulation, observation, memory, prompt


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.machine()


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="CPU time per measurement")
    return parser.parse_args(words)


def main() -> None:
    seconds = parse_options(sys.argv[1:]).seconds
    out = sys.stdout.write
    native = any(nes_py_folder().glob("_native*"))
    out(f"{_machine()}, Python {platform.python_version()}, numpy {np.__version__}, ")
    out(f"nes-py {'9 (native)' if native else '8.2.1 (library)'}, commit {_commit()}")
    out("\n\n| picture | steps/s/core | step us | emulation us | observation us | memory us |")
    out(" prompt us |\n|---|---|---|---|---|---|---|\n")
    for size, color in CASES:
        whole, *parts = measure(size, color, seconds)
        cells = " | ".join(f"{part:,.0f}" for part in (whole, *parts))
        out(f"| {size} {color} | {1e6 / whole:.0f} | {cells} |\n")


if __name__ == "__main__":
    main()
