"""What does a transition cost in replay memory, and does it stay at that?

    python benchmarks/replay_memory.py                     # bytes a transition, some seconds
    python benchmarks/replay_memory.py --soak 600          # ten minutes of eviction

Bytes: a ring of `--fill-mb` is filled, and filled once more, with segments of long episodes of
eight environments in turns, as acting cuts them: each repeats the last steps of the one before it,
and the frames of their first stack. Then the positions that can be sampled are counted, and the
bytes of each: those that are in use, as replay reports them, and how much the resident memory of
the process really grew; both against the bytes of one frame and 64 more.

Soak: add, sample, update priorities, hand segments out and patch them, over a ring so small that
every add evicts, with texts that change. Prints resident memory over time and its slope, from a
straight line through all but the first `WARM_UP_SHARE` of the time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.replay_speed import make_segment
from benchmarks.training_run import machine_line
from replay_service import (
    GameSpec,
    Replay,
    ReplayConfig,
    Segment,
    TargetConfig,
    TargetPatch,
)

TARGETS = TargetConfig(unroll_steps=5, n_step=5)
GAMES = {
    "64x64 gray, stack 4": GameSpec((1, 64, 64), "uint8", n_actions=7, frame_stack=4),
    "84x84 RGB": GameSpec((3, 84, 84), "uint8", n_actions=7),
}
ALLOWED_BYTES = 64  # beside a frame
N_ENVS = 8
N_FRAMES = 509
SOAK_MB, SOAK_BATCH = 20.0, 64
N_SEGMENTS_PATCHED = 2
N_PROMPTS, PROMPT_LENGTH = 50, 400
SOAK_LENGTHS = (20, 57, 100, 200)
REPORT_EVERY_S = 30.0
WARM_UP_SHARE = 0.2


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


class Episodes:
    """Segments of `length` new steps each, of `N_ENVS` endless episodes in turns."""

    def __init__(self, spec: GameSpec, length: int) -> None:
        self._template = make_segment(spec, TARGETS.context_steps, length)
        self._frames = np.random.default_rng(1).integers(
            0, 256, (N_FRAMES, *spec.obs_shape), dtype=np.uint8
        )
        self._length = length
        self.n_cut = 0

    def next(self) -> Segment:
        turn, env_id = divmod(self.n_cut, N_ENVS)
        template = self._template
        steps = turn * self._length + np.arange(template.n_frames)
        # Coprime with the number of frames: environments show the same ones, at other times.
        obs = self._frames[(steps + 101 * env_id) % N_FRAMES]
        header = replace(template.header, sequence=self.n_cut, env_id=env_id)
        self.n_cut += 1
        return replace(template, header=header, obs=obs)


def bytes_a_position(spec: GameSpec, fill_mb: float, length: int) -> tuple[float, float, int]:
    """In use and resident, for each position that can be sampled; and how many those are."""
    episodes = Episodes(spec, length)
    warm = Replay(ReplayConfig(capacity_mb=40.0), TARGETS, spec, seed=0)
    warm.add([episodes.next()])  # compiles
    replay = Replay(ReplayConfig(capacity_mb=fill_mb), TARGETS, spec, seed=0)
    before = resident_bytes()
    n_wanted = 0
    while replay.counters.n_pushed <= 2 * n_wanted or not n_wanted:
        report = replay.add([episodes.next()])
        if report.n_evicted_positions and not n_wanted:
            n_wanted = replay.n_positions
    n_positions = replay.n_positions
    grown = resident_bytes() - before
    return report.n_bytes_held / n_positions, grown / n_positions, n_positions


def print_bytes(fill_mb: float, segment_lengths: list[int]) -> None:
    print(f"| game | segments of | positions | frame + {ALLOWED_BYTES} | in use | resident |")
    print("|---" * 6 + "|")
    for name, spec in GAMES.items():
        goal = int(np.prod(spec.obs_shape)) + ALLOWED_BYTES
        for length in segment_lengths:
            # A process of its own: memory that another ring gave back would be taken first.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                used, resident, n = pool.apply(bytes_a_position, (spec, fill_mb, length))
            cells = (f"{share:,.0f}, {share / goal - 1:+.1%}" for share in (used, resident))
            print(f"| {name} | {length} | {n:,} | {goal:,} | {' | '.join(cells)} |", flush=True)


class Soak:
    """Every verb of a replay that always evicts; one call of `turn` after the other."""

    def __init__(self) -> None:
        spec = GAMES["64x64 gray, stack 4"]
        config = ReplayConfig(capacity_mb=SOAK_MB, text_mb=1.0)
        self.replay = Replay(config, TARGETS, spec, seed=0)
        self._segments = [make_segment(spec, TARGETS.context_steps, n) for n in SOAK_LENGTHS]
        self._rng = np.random.default_rng(0)
        self._n_actions = spec.n_actions
        self.n_turns = 0
        self.n_patched = 0

    def turn(self) -> None:
        self.n_turns += 1
        self.replay.add([self._segment()])
        batch = self.replay.sample(SOAK_BATCH, newest_version=self.n_turns)
        self.replay.update_priorities(batch.handles, self._rng.random(SOAK_BATCH))
        self.replay.sample_text(8)
        self._patch()
        self.replay.stats()

    def _segment(self) -> Segment:
        """The next one: played with newer weights, with texts not seen before."""
        segment = self._segments[self.n_turns % len(self._segments)]
        header = replace(
            segment.header,
            sequence=self.n_turns,
            weight_version_min=self.n_turns,
            weight_version_max=self.n_turns,
        )
        texts = [f"{self.n_turns}.{i}".ljust(PROMPT_LENGTH) for i in range(N_PROMPTS)]
        prompt = tuple(texts[i % N_PROMPTS] for i in range(len(segment)))
        options = ((*map(str, range(self._n_actions)),),) * len(segment)
        return replace(segment, header=header, prompt=prompt, options=options)

    def _patch(self) -> None:
        for request in self.replay.least_refreshed(N_SEGMENTS_PATCHED):
            shape = (len(request), self._n_actions)
            policy = np.full(shape, 1 / self._n_actions, dtype=np.float16)
            value = np.zeros(len(request), dtype=np.float16)
            patch = TargetPatch(request.handles, policy, value, self.n_turns + 1)
            self.n_patched += self.replay.patch([patch])


def slope_mb_an_hour(times_s: list[float], resident_mb: list[float]) -> float:
    """Of the straight line through the points after the warm-up."""
    first = int(np.searchsorted(times_s, WARM_UP_SHARE * times_s[-1]))
    slope_a_second = np.polyfit(times_s[first:], resident_mb[first:], 1)[0]
    return 3_600.0 * float(slope_a_second)


def soak(seconds: float) -> None:
    machine, start = Soak(), time.perf_counter()
    times_s: list[float] = []
    resident_mb: list[float] = []
    next_report = 0.0
    while (elapsed := time.perf_counter() - start) < seconds:
        machine.turn()
        if not times_s or elapsed > times_s[-1] + 1.0:
            times_s.append(elapsed)
            resident_mb.append(resident_bytes() / 1e6)
        if elapsed >= next_report:
            next_report += REPORT_EVERY_S
            print(f"[benchmark] {elapsed:.0f} s: {resident_mb[-1]:.1f} MB resident", flush=True)
    stats = machine.replay.stats()
    print(
        f"[benchmark] {machine.n_turns:,} turns, {stats['replay_push_total']:,.0f} positions in, "
        f"{machine.n_patched:,} patched; a ring of {SOAK_MB:g} MB\n"
        f"[benchmark] after warm-up {slope_mb_an_hour(times_s, resident_mb):+.2f} MB an hour, "
        f"at the end {resident_mb[-1]:.1f} MB"
    )


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fill-mb", type=float, default=400.0)
    parser.add_argument("--segments", type=int, nargs="+", default=[20, 40, 100, 400])
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    torch.set_num_threads(1)
    print(f"[benchmark] {machine_line()}", flush=True)
    if options.soak:
        soak(options.soak)
    else:
        print_bytes(options.fill_mb, options.segments)


if __name__ == "__main__":
    main()
