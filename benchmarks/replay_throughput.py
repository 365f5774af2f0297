"""How much goes through Ray into one replay shard, and out to a learner?

    python benchmarks/replay_throughput.py                          # about 5 minutes, 2 cores
    python benchmarks/replay_throughput.py --overproduce 20 --adds-in-flight 100000   # it spills

Everything runs as in a run of `launch/train.py`, but for who plays and who learns: producers hand
out prepared segments with checksums, a learner's update is a pause, as when a GPU computes it. The
driver forwards segments unopened within the bounds of the controller. Three parts:
- in: 1, 2 and 4 producers as fast as they are let
- out: batches a second of a learner that samples ahead, and the share of time it waits for them,
  alone and while two producers add
- over-production: producers that make segments five times faster than the shard, slowed down, takes
  them. What Ray spilled to disk is read from its object store; if anything was, the script fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray._private import internal_api

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.replay_speed import make_segment, numbered
from benchmarks.training_run import machine_line
from launch.control.call_book import CallBook
from launch.control.collecting import ADDS_IN_FLIGHT_PER_ACTOR
from launch.control.pacing import COLLECTS_IN_FLIGHT
from launch.control.ray_runtime import RayRuntime
from launch.control.runtime import Child, Resources
from replay_service import (
    AddReport,
    Batch,
    BatchSource,
    GameSpec,
    ReplayConfig,
    Segment,
    TargetConfig,
)
from replay_service.replay_actor import RayBatchSource, ReplayActor

SPEC = GameSpec((1, 64, 64), "uint8", n_actions=7, frame_stack=4)
TARGETS = TargetConfig(unroll_steps=5, n_step=5)
CONFIG = ReplayConfig(capacity_mb=400)
SEGMENTS_PER_CALL = 4
WARM_UP_S = 3.0
OVERPRODUCTION = 5.0
N_OVERPRODUCERS = 2
DEADLINE_S = 300.0
LIGHT = Resources(num_cpus=0.1)


class Producer:
    """Stands for an env actor that has segments ready."""

    def __init__(self, actor: int) -> None:
        self._actor = actor
        self._segment = make_segment(SPEC, TARGETS.context_steps)
        self._n_made = 0

    def ping(self) -> int:
        return os.getpid()

    def collect(self) -> tuple[int, list[Segment]]:
        """How many segments, and the segments."""
        segments = []
        for _ in range(SEGMENTS_PER_CALL):
            segments.append(numbered(self._segment, self._n_made, self._actor).with_checksum())
            self._n_made += 1
        return len(segments), segments


class SlowReplay(ReplayActor):
    """A shard each of whose `add` takes at least `add_s`."""

    def __init__(self, add_s: float) -> None:
        super().__init__(CONFIG, TARGETS, SPEC, seed=0)
        self._add_s = add_s

    def add(self, segments: Sequence[Segment]) -> AddReport:
        end = time.perf_counter() + self._add_s
        report = super().add(segments)
        time.sleep(max(0.0, end - time.perf_counter()))
        return report


class PausingLearner:
    """Takes a batch, pauses, gives its priorities back, and so on."""

    def __init__(self, source: BatchSource, batch_size: int) -> None:
        self._source = source
        self._rng = np.random.default_rng(0)
        self._batch_size = batch_size

    def ping(self) -> int:
        return os.getpid()

    def learn(self, seconds: float, update_s: float) -> LearnReport:
        self._step(update_s)  # the first call has nothing sampled ahead
        n_batches, waited = 0, 0.0
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            waited += self._step(update_s)
            n_batches += 1
        return LearnReport(n_batches, waited, time.perf_counter() - start)

    def _step(self, update_s: float) -> float:
        """Seconds of waiting for the batch."""
        start = time.perf_counter()
        batch: Batch = self._source.next()
        waited = time.perf_counter() - start
        time.sleep(update_s)
        self._source.update_priorities(batch.handles, self._rng.random(self._batch_size))
        return waited


@dataclass(frozen=True, slots=True)
class LearnReport:
    n_batches: int
    waited_s: float
    seconds: float


@dataclass(slots=True)
class Flow:
    """What went through the driver in `seconds`; the last two are the most at a time."""

    n_made: int = 0
    n_stored: int = 0
    seconds: float = 0.0
    learned: LearnReport | None = None
    n_waiting: int = 0
    used_mb: float = 0.0


class Driver:
    """Forwards segments as the controller does."""

    def __init__(
        self, runtime: RayRuntime, replay: Child, producers: Sequence[Child], adds_in_flight: int
    ) -> None:
        self._calls = CallBook(runtime, DEADLINE_S)
        self._runtime = runtime
        self._replay = replay
        self._producers = producers
        self._adds_in_flight = adds_in_flight * max(len(producers), 1)
        self._look_at = 0.0

    def flow(self, seconds: float, *, forward: bool = True) -> Flow:
        """Let segments flow; with `forward` false they are dropped, to see how fast they come."""
        flow, start = Flow(), time.perf_counter()
        while time.perf_counter() < start + seconds:
            self._issue()
            self._turn(flow, forward)
        flow.seconds = time.perf_counter() - start
        return flow

    def flow_while_learning(self, learner: Child, seconds: float, update_s: float) -> Flow:
        flow = Flow()
        self._calls.issue(learner, "learn", seconds, update_s)
        while flow.learned is None:
            self._issue()
            self._turn(flow, forward=True)
        return flow

    def drain(self) -> None:
        """Wait until nothing is in flight."""
        while self._calls.n_in_flight("collect", "add", "learn"):
            self._turn(Flow(), forward=False)

    def _issue(self) -> None:
        for producer in self._producers:
            while (
                self._calls.n_in_flight("collect", child=producer) < COLLECTS_IN_FLIGHT
                and self._calls.n_in_flight("add") < self._adds_in_flight
            ):
                self._calls.issue(producer, "collect", with_payload=True)

    def _turn(self, flow: Flow, forward: bool) -> None:
        for call in self._calls.ready():
            answer = self._runtime.value(call)
            if call.method == "collect":
                flow.n_made += SEGMENTS_PER_CALL
                if forward:
                    self._calls.issue(self._replay, "add", call.payload)
            elif isinstance(answer, AddReport):
                if answer.n_rejected or answer.n_duplicates:
                    raise RuntimeError(f"replay refused segments: {answer}")
                flow.n_stored += SEGMENTS_PER_CALL
            elif isinstance(answer, LearnReport):
                flow.learned = answer
        flow.n_waiting = max(flow.n_waiting, self._calls.n_in_flight("add"))
        if time.perf_counter() > self._look_at:
            self._look_at = time.perf_counter() + 1.0
            flow.used_mb = max(flow.used_mb, store_stats().object_store_bytes_used / 1e6)


def segment_mb() -> float:
    arrays = make_segment(SPEC, TARGETS.context_steps).to_arrays().values()
    return sum(array.nbytes for array in arrays) / 1e6


def store_stats() -> Any:
    """Ray's own statistics of its object stores, all nodes together."""
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return internal_api.get_memory_info_reply(state).store_stats


class Stage:
    """Children on one Ray, started and stopped as the parts need them."""

    def __init__(self, runtime: RayRuntime, adds_in_flight: int) -> None:
        self._runtime = runtime
        self._adds_in_flight = adds_in_flight
        self._n_started = 0

    def replay(self, add_s: float = 0.0) -> Child:
        return self._ready(SlowReplay, {"add_s": add_s})

    def learner(self, replay: Child, batch_size: int) -> Child:
        source = RayBatchSource(replay.handle, batch_size)
        return self._ready(PausingLearner, {"source": source, "batch_size": batch_size})

    def producers(self, n: int) -> list[Child]:
        return [self._ready(Producer, {"actor": self._n_started}) for _ in range(n)]

    def driver(self, replay: Child, producers: Sequence[Child]) -> Driver:
        return Driver(self._runtime, replay, producers, self._adds_in_flight)

    def stop(self, *children: Child) -> None:
        for child in children:
            self._runtime.stop(child)

    def _ready(self, factory: type, arguments: dict[str, object]) -> Child:
        self._n_started += 1
        name = f"{factory.__name__}-{self._n_started}"
        child = self._runtime.start(name, name, factory, arguments, LIGHT)
        CallBook(self._runtime, DEADLINE_S).ask(child, "ping")
        return child


def measure_in(stage: Stage, n_producers: int, seconds: float) -> str:
    replay, producers = stage.replay(), stage.producers(n_producers)
    driver = stage.driver(replay, producers)
    driver.flow(WARM_UP_S)
    flow = driver.flow(seconds)
    driver.drain()
    stage.stop(replay, *producers)
    rate = flow.n_stored / flow.seconds
    return f"| {n_producers} | {rate:,.0f} | {rate * segment_mb():,.0f} | {flow.used_mb:.0f} |"


def measure_out(stage: Stage, batch_size: int, update_ms: float, seconds: float) -> str:
    """Alone, and while two producers add."""
    cells = []
    for n_producers in (0, 2):
        replay, filler = stage.replay(), stage.producers(1)
        filling = stage.driver(replay, filler)
        filling.flow(WARM_UP_S)
        filling.drain()
        stage.stop(*filler)
        producers, learner = stage.producers(n_producers), stage.learner(replay, batch_size)
        driver = stage.driver(replay, producers)
        report = driver.flow_while_learning(learner, seconds, update_ms / 1e3).learned
        driver.drain()
        stage.stop(learner, replay, *producers)
        assert report is not None
        share = report.waited_s / report.seconds
        cells.append(f"{report.n_batches / report.seconds:.1f}, {share:.0%}")
    return f"| {batch_size} | {update_ms:g} | {' | '.join(cells)} |"


def overproduce(stage: Stage, seconds: float) -> tuple[str, float]:
    """A row of the table, and the MB that Ray spilled."""
    producers = stage.producers(N_OVERPRODUCERS)
    idle = stage.replay()
    unhindered = stage.driver(idle, producers)
    unhindered.flow(WARM_UP_S, forward=False)
    flow = unhindered.flow(2 * WARM_UP_S, forward=False)
    unhindered.drain()
    stage.stop(idle)
    possible = flow.n_made / flow.seconds
    replay = stage.replay(add_s=OVERPRODUCTION * SEGMENTS_PER_CALL / possible)
    flow = stage.driver(replay, producers).flow(seconds)
    spilled_mb = store_stats().spilled_bytes_total / 1e6
    stage.stop(replay, *producers)
    row = (
        f"| {possible:,.0f} | {flow.n_stored / flow.seconds:,.0f} | {flow.seconds:.0f} "
        f"| {flow.n_waiting} | {flow.used_mb:,.0f} | {spilled_mb:,.1f} |"
    )
    return row, spilled_mb


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--producers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--update-ms", type=float, nargs="*", default=[0, 10, 50])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row of in and out")
    parser.add_argument("--overproduce", type=float, default=120.0, help="seconds; 0 leaves it out")
    parser.add_argument(
        "--adds-in-flight",
        type=int,
        default=ADDS_IN_FLIGHT_PER_ACTOR,
        help="per producer; the default is the controller's bound",
    )
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    print(f"[benchmark] {machine_line()}; segments of {segment_mb():.2f} MB", flush=True)
    runtime = RayRuntime(None, num_cpus=2, num_gpus=0)
    spilled_mb = 0.0
    try:
        stage = Stage(runtime, options.adds_in_flight)
        if options.producers:
            print("| producers | segments/s | MB/s | MB in the object store, most |")
            print("|---|---|---|---|")
        for n_producers in options.producers:
            print(measure_in(stage, n_producers, options.seconds), flush=True)
        if options.batch and options.update_ms:
            print("| batch | update, ms | batches/s, waiting: alone | while 2 producers add |")
            print("|---|---|---|---|")
        for batch_size in options.batch:
            for update_ms in options.update_ms:
                print(measure_out(stage, batch_size, update_ms, options.seconds), flush=True)
        if options.overproduce:
            print("| segments/s possible | stored | seconds | adds in flight, most ", end="")
            print("| MB in the object store, most | MB spilled |\n|---|---|---|---|---|---|")
            row, spilled_mb = overproduce(stage, options.overproduce)
            print(row, flush=True)
    finally:
        runtime.shutdown()
    if spilled_mb:
        sys.exit(f"Ray spilled {spilled_mb:.1f} MB to disk; expected none")


if __name__ == "__main__":
    main()
