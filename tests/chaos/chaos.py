"""Kills random processes of a small real run, and says what came back, how fast, and what was lost.

    make chaos                                  # ten minutes
    python tests/chaos/chaos.py --minutes 2 --seed 7
    python tests/chaos/chaos.py --preset mario-quick

CartPole or Mario, two env actors, two replay shards; with Mario also a language model, served and
tuned, and reanalysis. Every fault is SIGKILL, to a child or to the driver,
after which the same command is given again. Recovered is a run in which the process has a
successor and env steps and updates are both beyond where they were. The printed seed decides what
is killed and when, as far as a real run can repeat. Exit code 1 if something did not come back.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch.control.checkpoint import CheckpointStore, verify
from tests.chaos.real_run import EXIT_RESUMABLE, MARIO, SMALL, RealRun, RunStuck

DRIVER = "driver"
KINDS = ("env-actor", "replay", "learner", "weight-server", "evaluator", "monitor", DRIVER)
MORE_KINDS = (*KINDS, "prior-engine", "language-learner", "reanalyser")
PRESETS = {
    "cartpole": (SMALL, KINDS),
    "mario-quick": ([*MARIO, "--replay.num-shards", "2"], MORE_KINDS),
}
PAUSE_S = (2.0, 12.0)  # between a recovery and the next fault


@dataclass(frozen=True, slots=True)
class Fault:
    """One kill and what followed; `lost` by unit, as far as the run's files tell."""

    kind: str
    seconds: float
    lost: dict[str, float]


def kind_of(name: str) -> str:
    return next(kind for kind in MORE_KINDS if name.startswith(kind))


def has_moved(run: RealRun, before: dict[str, float]) -> bool:
    now = run.metrics()
    return all(now.get(name, 0) > before[name] for name in ("global_step", "update"))


def kill_child(run: RealRun, name: str) -> Fault:
    known, before = run.pids()[name], run.metrics()
    n_replaced = len(run.events("learner_replaced"))
    os.kill(known, signal.SIGKILL)
    seconds = run.wait_until(
        lambda: run.pids().get(name) not in (None, known) and has_moved(run, before),
        f"{name} to come back",
    )
    lost = {}
    if name == "learner":
        source = run.events("learner_replaced")[n_replaced]["source"]
        kept = int(source.rpartition("update-")[2].split("-")[0]) if source else 0
        lost["updates"] = before["update"] - kept
    if name.startswith("replay"):
        lost["positions"] = before["replay_positions"] - run.metrics()["replay_positions"]
    return Fault(kind_of(name), seconds, lost)


def kill_driver(run: RealRun) -> Fault:
    assert run.process is not None
    before = run.metrics()
    run.process.kill()
    run.process.wait()
    started = time.monotonic()
    n_resumed = len(run.events("resumed"))
    run.start()
    run.wait_until(lambda: len(run.events("resumed")) > n_resumed, "the run to be resumed")
    kept = run.events("resumed")[-1]["env_steps"]
    run.wait_until(lambda: has_moved(run, before), "the run to pass where it was")
    return Fault(DRIVER, time.monotonic() - started, {"env steps": before["global_step"] - kept})


def inject(run: RealRun, rng: random.Random, kinds: Sequence[str]) -> Fault:
    """Kill one process of a kind drawn at random, and wait until the run has recovered."""
    kind = rng.choice(kinds)
    if kind == DRIVER:
        return kill_driver(run)
    names = sorted(name for name in run.pids() if name.startswith(kind))
    return kill_child(run, rng.choice(names))


def is_complete(run: RealRun, kinds: Sequence[str]) -> bool:
    found = {kind_of(name) for name in run.pids() if name.startswith(tuple(kinds))}
    return found == set(kinds) - {DRIVER} and bool(run.events("checkpoint"))


def torment(
    run: RealRun,
    seed: int,
    seconds: float,
    *,
    n_least: int = 1,
    kinds: Sequence[str] = KINDS,
    pause_s: tuple[float, float] = PAUSE_S,
) -> list[Fault]:
    """Faults of a run under way for `seconds`, `n_least` at least; then it is stopped, and must be
    whole.
    """
    rng, faults = random.Random(seed), []
    run.wait_until(lambda: is_complete(run, kinds), "every process and a checkpoint")
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(faults) < n_least:
        time.sleep(rng.uniform(*pause_s))
        run.wait_until(lambda: is_complete(run, kinds), "every process")
        faults.append(inject(run, rng, kinds))
        lost = ", ".join(f"{value:,.0f} {unit}" for unit, value in faults[-1].lost.items())
        print(
            f"[chaos] {faults[-1].kind}: back after {faults[-1].seconds:.1f} s"
            + (f", lost {lost}" if lost else ""),
            flush=True,
        )
    code = run.stop()
    if code != EXIT_RESUMABLE:
        raise RunStuck(f"the run ended with {code}, not {EXIT_RESUMABLE}:\n{run.output()[-4000:]}")
    newest = CheckpointStore(run.folder / "checkpoints", keep=1).newest()
    assert newest is not None
    verify(newest)
    if "Traceback" in run.output():
        raise RunStuck(f"the run printed a traceback:\n{run.output()[-4000:]}")
    return faults


def print_table(faults: list[Fault]) -> None:
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_kind[fault.kind].append(fault)
    print("| killed | times | back, s: median | worst | most lost |")
    print("|---|---|---|---|---|")
    for kind, of_kind in sorted(by_kind.items()):
        seconds = [fault.seconds for fault in of_kind]
        worst = max(of_kind, key=lambda fault: sum(fault.lost.values())).lost
        lost = ", ".join(f"{value:,.0f} {unit}" for unit, value in worst.items()) or "-"
        print(
            f"| {kind} | {len(of_kind)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} | "
            f"{lost} |"
        )
    print(f"{len(faults)} faults, {len(faults)} recoveries")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="drawn and printed if not given")
    parser.add_argument("--preset", choices=PRESETS, default="cartpole")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="warpzone-chaos-"))
    print(f"[chaos] seed {seed}; the run is in {folder / 'run'}", flush=True)
    settings, kinds = PRESETS[options.preset]
    run = RealRun(folder / "run", settings=settings)
    try:
        run.start()
        faults = torment(run, seed, options.minutes * 60.0, kinds=kinds)
    except RunStuck as error:
        print(f"[chaos] seed {seed}: {error}", file=sys.stderr)
        if run.process is not None:
            run.process.kill()
        return 1
    print_table(faults)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
