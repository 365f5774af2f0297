"""Watches a small real run for a while, and says what of each process grows.

    python tests/chaos/soak.py                   # twenty minutes of CartPole
    python tests/chaos/soak.py --minutes 5 --preset mario-quick

Of each process: unique resident memory, open files, threads, and the Python objects that are alive
after a collection (tests/chaos/counted_run.py); of Ray's object store: bytes and objects. Replay is
small, so that it is full early. The first fifth of the time is warm-up and left out.

Flat is what grows by less than a bound even at the upper end of a 95 % confidence interval of its
slope: of a straight line through the means of twelve windows, since samples that follow each other
closely are not independent. Open files and threads are flat if the last third of the time never has
more than four above the most of the first third. Exit code 1 if anything is not flat.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.training_run import machine_line
from tests.chaos.counted_run import OBJECTS_FILE
from tests.chaos.object_store import ObjectStore
from tests.chaos.real_run import EXIT_RESUMABLE, MARIO, SMALL, RealRun

PERIOD_S = 5.0
LEAST_MINUTES = 5.0  # so that every window has a count of objects
WARM_UP_SHARE = 0.2
N_WINDOWS = 12
T_95 = 2.228  # Student's t with N_WINDOWS - 2 degrees of freedom, two-sided
SPARE = 4  # open files or threads more than before are no leak: connections come and go
STORE = "object store"
MOST_MB_AN_HOUR = 60.0
MOST_OBJECTS_AN_HOUR = 10_000.0  # one leaked a call would be some 100,000
MOST_STORE_OBJECTS_AN_HOUR = 120.0
SETTINGS = {
    "cartpole": [*SMALL, "--replay.capacity-mb", "1", "--replay.text-mb", "1"],
    "mario-quick": MARIO,
}


@dataclass(slots=True)
class Watched:
    """What was seen of one process, or of the object store: (seconds, figure) by kind."""

    mb: list[tuple[float, float]] = field(default_factory=list)
    objects: list[tuple[float, float]] = field(default_factory=list)
    files: list[tuple[float, float]] = field(default_factory=list)
    threads: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth an hour: the estimate, and half of its 95 % confidence interval."""

    an_hour: float
    half: float

    @property
    def most(self) -> float:
        return self.an_hour + self.half


def slope_of(series: Sequence[tuple[float, float]]) -> Slope:
    """ValueError if a window has no sample."""
    seconds, values = np.array(series, dtype=np.float64).T
    edges = np.linspace(seconds[0], seconds[-1], N_WINDOWS + 1)[1:-1]
    window = np.searchsorted(edges, seconds, side="right")
    n_samples = np.bincount(window, minlength=N_WINDOWS)
    if not n_samples.all():
        raise ValueError(f"{len(seconds)} samples do not fill {N_WINDOWS} windows; watch longer")
    hours = np.bincount(window, seconds) / n_samples / 3600.0
    means = np.bincount(window, values) / n_samples
    spread = hours - hours.mean()
    an_hour = float(spread @ means / (spread @ spread))
    residuals = means - means.mean() - an_hour * spread
    error = math.sqrt(residuals @ residuals / (N_WINDOWS - 2) / (spread @ spread))
    return Slope(an_hour, T_95 * error)


def warm(series: Sequence[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    return [(at, value) for at, value in series if at >= WARM_UP_SHARE * seconds]


def is_bounded(series: Sequence[tuple[float, float]]) -> bool:
    """Whether the last third stays within SPARE of the most of the first third."""
    values = [value for _, value in series]
    third = max(1, len(values) // 3)
    return max(values[-third:]) <= max(values[:third]) + SPARE


def look(watched: Watched, process: psutil.Process, now: float) -> None:
    with process.oneshot():
        watched.mb.append((now, process.memory_full_info().uss / 1e6))
        watched.files.append((now, process.num_fds()))
        watched.threads.append((now, process.num_threads()))


def processes(run: RealRun) -> dict[str, psutil.Process]:
    """By name: the children, what they started in turn (vLLM's engine), and the driver."""
    assert run.process is not None
    found = {}
    for name, pid in (run.pids() | {"driver": run.process.pid}).items():
        found[name] = psutil.Process(pid)
        if name == "driver":
            continue
        for number, below in enumerate(found[name].children(recursive=True)):
            found[f"{name} > {below.name()} {number}"] = below
    return found


def watch(run: RealRun, seconds: float) -> dict[str, Watched]:
    watched: dict[str, Watched] = defaultdict(Watched)
    assert run.process is not None
    store = ObjectStore(run.process.pid)
    started, started_at = time.monotonic(), time.time()
    while (now := time.monotonic() - started) < seconds:
        for name, process in processes(run).items():
            with suppress(psutil.NoSuchProcess):  # replaced, or a helper of one look only
                look(watched[name], process, now)
        figures = store.figures()
        watched[STORE].mb.append((now, figures.used_bytes / 1e6))
        watched[STORE].objects.append((now, figures.n_objects))
        time.sleep(PERIOD_S)
    for line in (run.folder / OBJECTS_FILE).read_text().splitlines():
        record = json.loads(line)
        at = record["timestamp"] - started_at
        for name, count in record["objects"].items():
            if 0.0 <= at <= seconds:
                watched[name].objects.append((at, count))
    return watched


def row(name: str, one: Watched, seconds: float) -> tuple[str, bool]:
    """A line of the table, and whether all in it is flat."""
    most_objects = MOST_STORE_OBJECTS_AN_HOUR if name == STORE else MOST_OBJECTS_AN_HOUR
    cells, is_flat = [], True
    for series, most in ((one.mb, MOST_MB_AN_HOUR), (one.objects, most_objects)):
        kept = warm(series, seconds)
        if not kept:
            cells += ["-", "-"]
            continue
        slope = slope_of(kept)
        is_flat &= slope.most <= most
        cells.append(f"{kept[0][1]:,.1f} -> {kept[-1][1]:,.1f}")
        cells.append(f"{slope.an_hour:+,.1f} ± {slope.half:,.1f}")
    for series in (one.files, one.threads):
        kept = warm(series, seconds)
        is_flat &= not kept or is_bounded(kept)
        cells.append(f"{kept[0][1]:.0f} -> {kept[-1][1]:.0f}" if kept else "-")
    return f"| {name} | {' | '.join(cells)} | {'yes' if is_flat else 'NO'} |", is_flat


def report(watched: dict[str, Watched], seconds: float) -> bool:
    """Prints the table; whether nothing grew. What was there for less than the time is left out."""
    print(
        "| process | unique MB | MB/hour | live objects | an hour | open files | threads | flat |"
    )
    print("|---|---|---|---|---|---|---|---|")
    is_flat = True
    for name, one in sorted(watched.items()):
        if one.mb[0][0] > WARM_UP_SHARE * seconds or one.mb[-1][0] < seconds - 4 * PERIOD_S:
            print(f"| {name} | was not there all the time | | | | | | - |")
            continue
        line, is_row_flat = row(name, one, seconds)
        print(line)
        is_flat &= is_row_flat
    return is_flat


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--preset", default="cartpole", choices=sorted(SETTINGS))
    options = parser.parse_args()
    if options.minutes < LEAST_MINUTES:
        parser.error(f"--minutes must be at least {LEAST_MINUTES:g}, got {options.minutes:g}")
    folder = Path(tempfile.mkdtemp(prefix="warpzone-soak-"))
    run = RealRun(
        folder / "run", settings=SETTINGS[options.preset], script="tests/chaos/counted_run.py"
    )
    print(f"[soak] {options.preset}, {options.minutes:g} minutes, {machine_line()}", flush=True)
    run.start()
    run.wait_until(lambda: run.metrics().get("update", 0) > 100 and run.events("checkpoint"), "it")
    watched = watch(run, options.minutes * 60.0)
    metrics = run.metrics()
    code = run.stop()
    is_flat = report(watched, options.minutes * 60.0)
    print(f"{metrics['global_step']:,.0f} env steps, {metrics['update']:,.0f} updates, exit {code}")
    if is_flat and code == EXIT_RESUMABLE:
        shutil.rmtree(folder)
        return 0
    print(f"[soak] the run is in {folder / 'run'}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
