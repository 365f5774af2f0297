"""Watches a small real run for a while, and says what of each process grows.

    python tests/chaos/soak.py                   # twenty minutes
    python tests/chaos/soak.py --minutes 2

Unique resident memory (its slope from a straight line through all but the first fifth), open
files and threads. Replay is small, so that it is full early. Exit code 1 if a process grows by more
than `--most-mb-an-hour` or ends with more open files or threads than it had after the first fifth.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos.real_run import EXIT_RESUMABLE, RealRun

PERIOD_S = 5.0
WARM_UP_SHARE = 0.2
SPARE = 4  # open files or threads more than before are no leak: connections come and go


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one process."""

    seconds: float
    unique_mb: float
    n_files: int
    n_threads: int


def look(pid: int, seconds: float) -> Sample:
    process = psutil.Process(pid)
    memory = process.memory_full_info()
    return Sample(seconds, memory.uss / 1e6, process.num_fds(), process.num_threads())


def watch(run: RealRun, seconds: float) -> dict[str, list[Sample]]:
    """Samples by process, the driver's included."""
    samples: dict[str, list[Sample]] = defaultdict(list)
    assert run.process is not None
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        for name, pid in (run.pids() | {"driver": run.process.pid}).items():
            samples[name].append(look(pid, now))
        time.sleep(PERIOD_S)
    return samples


def report(samples: dict[str, list[Sample]], most_mb_an_hour: float) -> bool:
    """Prints the table; whether nothing grew."""
    print("| process | unique MB: first | last | MB/hour | open files | threads |")
    print("|---|---|---|---|---|---|")
    is_flat = True
    for name, of_process in sorted(samples.items()):
        warm = of_process[int(WARM_UP_SHARE * len(of_process)) :]
        hours = np.array([s.seconds for s in warm]) / 3600.0
        slope = float(np.polyfit(hours, [s.unique_mb for s in warm], 1)[0])
        files, threads = ([getattr(s, n) for s in warm] for n in ("n_files", "n_threads"))
        is_flat &= slope <= most_mb_an_hour
        is_flat &= files[-1] <= files[0] + SPARE and threads[-1] <= threads[0] + SPARE
        print(
            f"| {name} | {of_process[0].unique_mb:.1f} | {warm[-1].unique_mb:.1f} | {slope:+.1f} | "
            f"{files[0]} -> {files[-1]} | {threads[0]} -> {threads[-1]} |"
        )
    return is_flat


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--most-mb-an-hour", type=float, default=60.0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="warpzone-soak-"))
    run = RealRun(folder / "run", "--replay.capacity-mb", "1", "--replay.text-mb", "1")
    run.start()
    run.wait_until(lambda: run.metrics().get("update", 0) > 100 and run.events("checkpoint"), "it")
    samples = watch(run, options.minutes * 60.0)
    metrics = run.metrics()
    code = run.stop()
    is_flat = report(samples, options.most_mb_an_hour)
    print(f"{metrics['global_step']:,.0f} env steps, {metrics['update']:,.0f} updates, exit {code}")
    shutil.rmtree(folder)
    return 0 if is_flat and code == EXIT_RESUMABLE else 1


if __name__ == "__main__":
    sys.exit(main())
