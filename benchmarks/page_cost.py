"""What does an open live page cost the run that it shows?

    python benchmarks/page_cost.py                                # mario-quick, 16 pairs of 20 s
    python benchmarks/page_cost.py --pairs 30 -- --preset mario
    python benchmarks/page_cost.py --chromium                     # with a browser that draws it

One run with --dashboard, cut into blocks in which the page is open or not, in the order open, shut,
shut, open, so that what drifts in a run cancels. Open means a connection that reads all that
is sent and looks at one environment, as a browser does; drawing it is left out unless --chromium is
given, since browsers need not run on the machine of the run. What comes in bursts as long as a
block would hide a small cost: env actors are called for few steps at a time, the language model is
asked but not trained, and blocks begin and end with an env step. Of each block: env steps per
second, by the run's own records, and processor time per env step of all processes of the run, the
page's included. Prints the mean over the pairs of open / shut, with its 95 % interval, by a
bootstrap over the pairs, and the processor time process by process.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training_run import UNDISTURBED, child_pids, machine_line
from tests.chaos.real_run import RealRun
from tests.dashboard.chromium import chromium

GOAL = 0.02
PAGE_MODULE = "launch.watch"
N_RESAMPLES = 10_000
SETTLE_S = 4.0  # from opening or shutting to what is measured: a viewer is noticed late
WARM_UP_S = 30.0  # of learning, before the first block
WITHOUT_BURSTS = ("--acting.collect-steps=4", "--language.enabled=false")


@dataclass(frozen=True, slots=True)
class Block:
    """cpu_ms_per_s: processor time of the run, by process, in milliseconds a second."""

    steps_per_s: float
    cpu_ms_per_s: Mapping[str, float]

    @property
    def cpu_ms_per_step(self) -> float:
        return sum(self.cpu_ms_per_s.values()) / self.steps_per_s


def cpu_seconds(run: RealRun) -> dict[str, float]:
    """Of the run's driver and all below it, the page among them, by name."""
    assert run.process is not None
    driver = psutil.Process(run.process.pid)
    names = {pid: name for name, pid in child_pids(run.folder).items()}
    spent: dict[str, float] = {}
    for process in (driver, *driver.children(recursive=True)):
        with suppress(psutil.Error):
            is_page = PAGE_MODULE in process.cmdline()
            name = "page" if is_page else names.get(process.pid, "others")
            times = process.cpu_times()
            spent[name] = spent.get(name, 0.0) + times.user + times.system
    return spent


def after_a_step(run: RealRun) -> dict[str, float]:
    """The first record from now on that counts new env steps.

    Steps are counted call by call, so a span between two such records holds whole calls.
    """
    counted = run.metrics()["global_step"]
    run.wait_until(lambda: run.metrics()["global_step"] > counted, "an env step")
    return run.metrics()


def measure(run: RealRun, seconds: float) -> Block:
    """From one record to another, some `seconds` later."""
    time.sleep(SETTLE_S)
    first, cpu_before = after_a_step(run), cpu_seconds(run)
    time.sleep(seconds)
    last, cpu_after = after_a_step(run), cpu_seconds(run)
    lasted = last["timestamp"] - first["timestamp"]
    return Block(
        (last["global_step"] - first["global_step"]) / lasted,
        {name: 1e3 * (cpu_after[name] - cpu_before.get(name, 0.0)) / lasted for name in cpu_after},
    )


@contextmanager
def open_page(address: str) -> Iterator[None]:
    """As a browser connects, without drawing. RuntimeError if it was not open to the end."""
    ends, n_pictures = threading.Event(), 0

    def read() -> None:
        nonlocal n_pictures
        feed = address.replace("http", "ws", 1) + "feed"
        with (
            suppress(ConnectionClosed),
            connect(feed, max_size=None, origin=address.rstrip("/")) as socket,
        ):
            socket.send(json.dumps({"kind": "look", "actor": 0, "env": 0}))
            while not ends.is_set():
                with suppress(TimeoutError):
                    news = json.loads(socket.recv(timeout=0.5))
                    n_pictures += any(m["kind"] == "live" for m in news["messages"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
        was_open = reader.is_alive()
    finally:
        ends.set()
        reader.join()
    if not was_open or n_pictures < 2:
        raise RuntimeError(
            f"the page of an open block ended early or was sent {n_pictures} pictures, so the "
            "block measures no open page; start again, with longer --seconds if there were few"
        )


def ratio_line(name: str, opened: Sequence[float], shut: Sequence[float]) -> str:
    ratios = np.array(opened) / np.array(shut)
    drawn = np.random.default_rng(0).choice(ratios, (N_RESAMPLES, len(ratios))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return (
        f"| {name} | {np.mean(shut):.2f} | {np.mean(opened):.2f} "
        f"| {ratios.mean() - 1:+.2%} | {low - 1:+.2%} to {high - 1:+.2%} |"
    )


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a block")
    parser.add_argument("--chromium", action="store_true", help="open it in a browser here")
    parser.add_argument("arguments", nargs="*", default=["--preset", "mario-quick"])
    options = parser.parse_args(words)
    if options.pairs < 2:
        parser.error(f"--pairs must be at least 2, got {options.pairs}: one has no interval")
    return options


def main() -> None:
    options = parse_options(sys.argv[1:])
    print(f"[benchmark] {machine_line()}\n[benchmark] {' '.join(options.arguments)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="warpzone-page-") as folder:
        opened, shut = measure_blocks(Path(folder), options)
    print("| | shut | open | open / shut - 1 | 95 % interval |\n|---|---|---|---|---|")
    for name, field in (
        (f"env steps/s (goal: above -{GOAL:.0%})", "steps_per_s"),
        ("processor ms per env step", "cpu_ms_per_step"),
    ):
        print(
            ratio_line(name, [getattr(b, field) for b in opened], [getattr(b, field) for b in shut])
        )
    print(cpu_table(opened, shut))


def cpu_table(opened: Sequence[Block], shut: Sequence[Block]) -> str:
    """Means over the blocks, process by process: what an open page costs, and whom."""
    rows = ["| process | processor ms a second, shut | open | more |", "|---|---|---|---|"]
    for name in [*sorted({name for b in (*opened, *shut) for name in b.cpu_ms_per_s}), ""]:
        before, after = (
            np.mean(
                [
                    b.cpu_ms_per_s.get(name, 0.0) if name else sum(b.cpu_ms_per_s.values())
                    for b in blocks
                ]
            )
            for blocks in (shut, opened)
        )
        rows.append(f"| {name or 'all'} | {before:.1f} | {after:.1f} | {after - before:+.1f} |")
    return "\n".join(rows)


def measure_blocks(folder: Path, options: argparse.Namespace) -> tuple[list[Block], list[Block]]:
    """Those with the page open, and those without; the run lies below `folder`."""
    endless = ["--device", "cpu", "--total-env-steps", "100000000", "--control.log-period-s", "1"]
    page = ["--dashboard", "--dashboard.port", "0"]
    settings = [*options.arguments, *endless, *UNDISTURBED, *WITHOUT_BURSTS, *page]
    run = RealRun(folder / "run", settings=settings)
    run.start()
    with ExitStack() as stack:
        stack.callback(run.kill)
        run.wait_until(lambda: run.metrics().get("update", 0.0) > 0, "an update")
        found = re.search(r"live page: (\S+)", run.output())
        assert found is not None, run.output()
        browser = stack.enter_context(chromium(folder)) if options.chromium else None
        time.sleep(WARM_UP_S)
        blocks: dict[bool, list[Block]] = {True: [], False: []}
        for pair in range(options.pairs):
            for is_open in (True, False) if pair % 2 == 0 else (False, True):
                with ExitStack() as opened:
                    if browser is not None:
                        browser.open(found[1] if is_open else "about:blank")
                    elif is_open:
                        opened.enter_context(open_page(found[1]))
                    blocks[is_open].append(measure(run, options.seconds))
        run.stop()
    return blocks[True], blocks[False]


if __name__ == "__main__":
    main()
