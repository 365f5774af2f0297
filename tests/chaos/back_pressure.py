"""Slows parts of a small real run down from outside; says whether it stays bounded and recovers.

    python tests/chaos/back_pressure.py                          # four cases, two minutes each
    python tests/chaos/back_pressure.py --minutes 0.5 --only slow-learner --seed 7

over-production  env actors that could make some hundred times what the limiter lets them
slow-learner     the learner's process is stopped nine tenths of the time (SIGSTOP, SIGCONT)
slow-replay      the same, all shards at once
stuck-prior      the process of the language model is stopped all the time

Resident memory of every process, Ray's object store by its own figures, env steps and updates are
read before, during and after. Asserted: nothing was ever spilled; no process but Ray's own record
of tasks grew by more than MOST_GROWTH_MB; the store never held more than MOST_STORE_MB; env steps
and updates moved in both halves of the time; no child was given up; both are back at half of their
pace within RECOVERY_S; the limiter's error ends within its band. For over-production, recovery is
the same run, gone on with at a ratio that the learner can follow. The seed decides when processes
are stopped. Exit code 1 if anything of that does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.training_run import machine_line
from launch.config import Config, overlay
from launch.control.checkpoint import CheckpointStore, verify
from launch.control.pacing import make_limiter
from tests.chaos.object_store import ObjectStore
from tests.chaos.real_run import EXIT_RESUMABLE, MARIO, SMALL, RealRun, RunStuck

LOOK_S = 1.0
TURN_S = (0.5, 2.0)  # of a process that is stopped and let go again
MOST_GROWTH_MB = 64.0  # of one process, over the most it had before
MOST_STORE_MB = 64.0
RAYS_OWN = "gcs_server"  # keeps a record of every task, up to 100,000 of them; not ours to bound
MOST_SPARED_SHARE = 0.5  # of the time, that env actors work while the limiter should hold them
CALM_S = 20.0  # before, and after
RECOVERY_S = 120.0
RECOVERED_SHARE = 0.5  # of the pace before; other work on the machine moves it by tens of percent


@dataclass(frozen=True, slots=True)
class Case:
    """victims: names of children begin so; stopped: share of the time that they are, 1 = always.

    calm_s: before and after, enough to see the most that each process takes in its rounds
    """

    settings: Sequence[str]
    victims: tuple[str, ...] = ()
    stopped: float = 0.0
    calm_s: float = CALM_S


FULL_SOON = ("--replay.capacity-mb", "0.4", "--replay.text-mb", "1")
CASES = {
    "over-production": Case(
        [*SMALL, "--num-actors", "3", "--simulations", "2", "--limiter.samples-per-insert", "1024"]
    ),
    "slow-learner": Case([*SMALL, *FULL_SOON], ("learner",), 0.9),
    "slow-replay": Case([*SMALL, *FULL_SOON], ("replay",), 0.9),
    # A small cache is soon resident as a whole; a large one goes on growing into its bound. The
    # language learner takes and gives back more than 100 MB with each of its updates.
    "stuck-prior": Case([*MARIO, "--prior.kv-cache-mb", "32"], ("prior-engine-",), 1.0, 120.0),
}
FULL = 0.8  # the end of a ring may stay unused
RELIEF = ("--limiter.samples-per-insert", "8")


@dataclass(slots=True)
class Phase:
    """What was seen of a run over a while; megabytes, the most of all looks, by process."""

    began: dict[str, float]
    ended: dict[str, float] = field(default_factory=dict)
    resident_mb: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    store_mb: float = 0.0
    spilled_mb: float = 0.0
    halfway: dict[str, float] = field(default_factory=dict)

    def rate(self, counter: str) -> float:
        """A second."""
        return _moved(self.began, self.ended, counter) / _moved(self.began, self.ended, "timestamp")


def _moved(start: dict[str, float], end: dict[str, float], counter: str) -> float:
    return end[counter] - start[counter]


SIDES = ("global_step", "update")


class Watch:
    """Looks at a run once a second, from outside."""

    def __init__(self, run: RealRun) -> None:
        assert run.process is not None
        self._run = run
        self._driver = psutil.Process(run.process.pid)
        self._store = ObjectStore(run.process.pid)

    def phase(self, seconds: float) -> Phase:
        """Lasts until there is a record of metrics from `seconds` after the first."""
        phase = Phase(self._run.metrics())
        while True:
            self._look(phase)
            phase.ended = self._run.metrics()
            lasted = _moved(phase.began, phase.ended, "timestamp")
            if lasted >= seconds:
                # Of the records, since looks at a run under pressure may lie far apart.
                middle = phase.began["timestamp"] + seconds / 2
                early = [r for r in self._run.records() if r["timestamp"] <= middle]
                phase.halfway = early[-1]
                return phase
            self._run.wait_until(lambda: True, "a run that goes on")
            time.sleep(LOOK_S)

    def _look(self, phase: Phase) -> None:
        names = {pid: name for name, pid in self._run.pids().items()} | {self._driver.pid: "driver"}
        for process in (self._driver, *self._driver.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                key = (names.get(process.pid) or process.name(), process.pid)
                resident_mb = process.memory_info().rss / 1e6
                phase.resident_mb[key] = max(phase.resident_mb[key], resident_mb)
        figures = self._store.figures()
        phase.store_mb = max(phase.store_mb, figures.used_bytes / 1e6)
        phase.spilled_mb = max(phase.spilled_mb, figures.spilled_bytes / 1e6)


@contextmanager
def pressed(run: RealRun, case: Case, rng: random.Random) -> Iterator[None]:
    """Meanwhile the victims are stopped for their share of the time; afterwards they go on."""
    victims = [pid for name, pid in run.pids().items() if name.startswith(case.victims)]
    if case.victims and not victims:
        raise RunStuck(f"the run has no {case.victims}")
    is_over = threading.Event()

    def send(number: signal.Signals) -> None:
        for pid in victims:
            with suppress(ProcessLookupError):  # one that was replaced shows in the events
                os.kill(pid, number)

    def take_turns() -> None:
        while not is_over.is_set():
            turn_s = rng.uniform(*TURN_S)
            send(signal.SIGSTOP)
            is_over.wait(case.stopped * turn_s)
            if case.stopped < 1.0:
                send(signal.SIGCONT)
                is_over.wait((1.0 - case.stopped) * turn_s)

    thread = threading.Thread(target=take_turns, name="pressure")
    if case.victims:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if case.victims:
            thread.join()
        send(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one case; `recovery_s` until both sides were back at half of their pace."""

    before: Phase
    during: Phase
    after: Phase
    recovery_s: float
    held: float  # share of the time under pressure that env actors waited for the limiter

    @property
    def spilled_mb(self) -> float:
        return max(phase.spilled_mb for phase in (self.before, self.during, self.after))

    @property
    def store_mb(self) -> float:
        return max(self.during.store_mb, self.after.store_mb)

    @property
    def growth(self) -> tuple[float, str]:
        """The most that a process has grown by since before, in MB, and which one."""
        return max(
            (max(self.during.resident_mb[key], self.after.resident_mb[key]) - before, key[0])
            for key, before in self.before.resident_mb.items()
            if key[0] != RAYS_OWN
        )

    @property
    def resident_mb(self) -> tuple[float, float]:
        """Of all processes: before, and the most after that."""
        first, *later = (
            sum(phase.resident_mb.values()) for phase in (self.before, self.during, self.after)
        )
        return first, max(later)


def recover(run: RealRun, watch: Watch, pace: dict[str, float]) -> float:
    """Seconds until both sides made RECOVERED_SHARE of their pace over some seconds."""
    started = time.monotonic()
    while True:
        window = watch.phase(CALM_S / 4)
        seconds = time.monotonic() - started
        if all(window.rate(side) >= RECOVERED_SHARE * pace[side] for side in SIDES):
            return seconds
        if seconds > RECOVERY_S:
            rates = {side: round(window.rate(side), 2) for side in SIDES}
            raise RunStuck(f"{RECOVERY_S:.0f} s after the pressure the pace is {rates} of {pace}")


def relieve(run: RealRun) -> Watch:
    """The run is stopped and goes on at RELIEF."""
    code = run.stop()
    if code != EXIT_RESUMABLE:
        raise RunStuck(f"the run ended with {code}:\n{run.output()[-4000:]}")
    before = run.metrics()
    run.start(*RELIEF)
    run.wait_until(
        lambda: all(run.metrics()[side] > before[side] for side in SIDES), "the run to go on"
    )
    return Watch(run)


def press(run: RealRun, case: Case, seconds: float, rng: random.Random, calm_s: float) -> Result:
    """One case on a run that is under way; raises RunStuck if it does not recover."""
    watch = Watch(run)
    before = watch.phase(calm_s)
    n_records = len(run.records())
    with pressed(run, case, rng):
        during = watch.phase(seconds)
    waits = [r["wait_percent/env_actor/limiter"] for r in run.records()[n_records:]]
    started = time.monotonic()
    if case.victims:
        recovery_s = recover(run, watch, {side: before.rate(side) for side in SIDES})
    else:
        watch = relieve(run)
        recovery_s = time.monotonic() - started
    return Result(before, during, watch.phase(calm_s), recovery_s, sum(waits) / len(waits) / 100.0)


def complaints(run: RealRun, case: Case, result: Result) -> list[str]:
    """What does not hold of what the module's docstring asserts, but for the limiter's error."""
    found = []
    if result.spilled_mb:
        found.append(f"{result.spilled_mb:.1f} MB were spilled")
    if result.store_mb > MOST_STORE_MB:
        found.append(f"the object store held {result.store_mb:.0f} MB")
    grown_mb, name = result.growth
    if grown_mb > MOST_GROWTH_MB:
        found.append(f"{name} grew by {grown_mb:.0f} MB")
    during = result.during
    for start, end in ((during.began, during.halfway), (during.halfway, during.ended)):
        found += [f"no {side} for half of the time" for side in SIDES if end[side] <= start[side]]
    if failures := run.events("child_failed"):
        found.append(f"children failed: {failures}")
    if not case.victims and result.held < MOST_SPARED_SHARE:
        found.append(f"the limiter held env actors for {result.held:.0%} of the time only")
    return found


def limiter_complaints(run: RealRun) -> list[str]:
    """Whether the stopped run's newest checkpoint has an error within the limiter's band.

    Beyond the band by what could still come in when the limiter last let env actors go on: a call's
    steps each, and the segments that they had begun before.
    """
    newest = CheckpointStore(run.folder / "checkpoints", keep=1).newest()
    assert newest is not None
    config = overlay(
        Config(), yaml.safe_load((run.folder / "config.yaml").read_text()), where="run"
    )
    limiter = make_limiter(config)
    limiter.restore(verify(newest)["limiter"])
    acting = config.acting
    begun = acting.num_actors * acting.envs_per_actor * acting.segment_length
    beyond = config.limiter.samples_per_insert * begun
    half = (limiter.error_max - limiter.error_min) / 2
    if limiter.error_min <= limiter.error <= limiter.error_max + half + beyond:
        return []
    return [
        f"the limiter's error is {limiter.error:.0f}, its band {limiter.error_min:.0f} to "
        f"{limiter.error_max:.0f}"
    ]


def is_ready(run: RealRun, case: Case) -> bool:
    """Both sides work, replay is about full, and whoever is to be a victim is there."""
    metrics = run.metrics()
    is_full = not case.victims or metrics.get("replay_fill_rate", 0.0) > FULL
    names = run.pids()
    is_there = all(any(name.startswith(victim) for name in names) for victim in case.victims)
    # Until then vLLM is still warming up, and grows.
    is_warm = "prior-engine-" not in case.victims or (
        len(run.events("adapter_published")) > 2 and bool(run.events("evaluation"))
    )
    has_begun = metrics.get("update", 0) > 50 and bool(run.events("checkpoint"))
    return has_begun and is_full and is_there and is_warm


def wait_until_ready(run: RealRun, case: Case) -> None:
    run.wait_until(lambda: is_ready(run, case), "the run to be under way")


def finish(run: RealRun) -> list[str]:
    code = run.stop()
    found = limiter_complaints(run)
    if code != EXIT_RESUMABLE:
        found.append(f"the run ended with {code}")
    if "Traceback" in run.output():
        found.append(f"the run printed a traceback:\n{run.output()[-4000:]}")
    return found


def row(name: str, result: Result) -> str:
    grown_mb, who = result.growth
    first_mb, most_mb = result.resident_mb
    rates = " | ".join(
        " / ".join(f"{p.rate(side):.1f}" for p in (result.before, result.during, result.after))
        for side in SIDES
    )
    return (
        f"| {name} | {rates} | {first_mb:,.0f} -> {most_mb:,.0f} | {grown_mb:+.0f} ({who}) | "
        f"{result.store_mb:.1f} | {result.spilled_mb:.1f} | {result.held:.0%} | "
        f"{result.recovery_s:.0f} |"
    )


HEAD = (
    "| case | env steps/s: before / during / after | updates/s | resident MB, all processes | "
    "most grown, MB | store, MB | spilled, MB | env actors held | recovered after, s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="of pressure, for each case")
    parser.add_argument("--only", choices=sorted(CASES), help="one case instead of all")
    parser.add_argument("--seed", type=int, help="drawn and printed if not given")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"[pressure] seed {seed}; {machine_line()}\n{HEAD}", flush=True)
    has_failed = False
    for name, case in CASES.items():
        if options.only not in (None, name):
            continue
        folder = Path(tempfile.mkdtemp(prefix=f"warpzone-{name}-"))
        run = RealRun(folder / "run", settings=case.settings)
        run.start()
        try:
            wait_until_ready(run, case)
            result = press(run, case, 60.0 * options.minutes, random.Random(seed), case.calm_s)
            print(row(name, result), flush=True)
            found = complaints(run, case, result) + finish(run)
        except RunStuck as error:
            found = [str(error)]
        finally:
            run.kill()
        for complaint in found:
            print(f"[pressure] {name}, seed {seed}: {complaint}", file=sys.stderr)
        has_failed |= bool(found)
        if not found:
            shutil.rmtree(folder)
    return 1 if has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
