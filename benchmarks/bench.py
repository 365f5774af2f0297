"""The benchmarks in their short forms, and docs/benchmarks.md brought up to date with the output.

    make bench                                        # ours alone, about half an hour on 2 cores
    make bench ARGS="--only env_speed search_speed"
    make bench ARGS="--peers"                         # with those that install other systems

A short form says whether a benchmark still runs and about what it prints; the tables that docs
quote come from the full ones. Only the part of the page between two markers is written, an entry
for each benchmark that ran, with its command, machine, commit and date; all else stays as it is.
Whatever a benchmark has started ends with it, by Ctrl-C too.

Exit codes: 0 all ran, 1 one failed or took too long (its old entry stays), 2 bad input, 130
interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training_run import ROOT, machine_line, python_path
from launch.control.descendants import descendants, end_all

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN = "<!-- make bench: begin. Everything up to the end mark is written by `make bench`. -->"
END = "<!-- make bench: end -->"
HEAD = """## Short forms

What `make bench` printed last: short runs that show whether each benchmark still works and about
what to expect. For comparisons take the tables above, which come from the full commands."""
LIMIT_S = 900.0  # of one short form
LOOK_S = 5.0  # between looks at what it has started, which cost about 10 ms each
MOST_LINES = 60  # kept of what one prints
OUTPUT = "runs/benchmarks/bench"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ENTRY = re.compile(r"(?m)^### (\S+)$")


@dataclass(frozen=True, slots=True)
class Short:
    """A script and the words that make it short; peer: the system that it installs, if any."""

    name: str
    words: str = ""
    peer: str = ""

    @property
    def command(self) -> str:
        return f"python benchmarks/{self.name}.py {self.words}".strip()


BENCHMARKS = (
    Short("env_speed", "--seconds 0.3"),
    Short("frame_compression"),
    Short("search_speed", "--seconds 0.3"),
    Short("learner_speed", "--seconds 2"),
    Short("replay_speed", "--capacity-mb 50"),
    Short("replay_memory", "--fill-mb 20 --segments 40"),
    Short("checkpoint_cost", "--positions 10000"),
    Short(
        "replay_throughput",
        "--producers 1 --batch 64 --update-ms 50 --seconds 2 --overproduce 0",
    ),
    Short("search_gpu", "--device cpu --roots 1 8 --width 128 --seconds 1"),
    Short("prior_engine", "--concurrent 1 --options 7 --seconds 1 --rounds 1"),
    Short("simulated_scale", "--actors 100 --seconds 180 --warm-up 60"),
    Short("page_cost", "--pairs 2 --seconds 10 -- --preset cartpole"),
    Short(
        "overlap",
        "--num-envs 4 --rollout 16 --seconds 20 --output runs/benchmarks/bench"
        " -- --limiter.samples-per-insert 32",
    ),
    # The run that overlap has just made.
    Short(
        "mario_progress",
        f"{OUTPUT}/overlap-runs/4x16-overlapped-0 --episodes 5 --max-steps 200",
    ),
    Short("run_profile", f"--env-steps 3000 --env-seconds 0.3 --output {OUTPUT}"),
    Short("run_costs", "--seconds 60 -- --preset cartpole"),
    Short("learn_cartpole", f"--seeds 0 --env-steps 1000 --output {OUTPUT}/cartpole"),
    Short("adaptive", f"--seeds 0 --env-steps 1000 --every 500 --output {OUTPUT}/adaptive"),
    # Text worlds need an extra; Mario does not.
    Short(
        "prior",
        "--world mario --seeds 0 --env-steps 1200 --every 600 --pretrain-steps 10 --episodes 1"
        f" --demonstrations 1 --output {OUTPUT}/prior",
    ),
    Short(
        "weak_scaling",
        f"--actors 1 2 --step-ms 100 --settle 5 --seconds 15 --output {OUTPUT}/weak-scaling",
    ),
    Short("search", "--widths 128 --seconds 5", peer="lightzero"),
    Short("search_exactness", peer="lightzero"),
    Short("tree", "--roots 8 --actions 7 --seconds 1", peer="lightzero"),
    Short("replay", "--items 100000 --batch 256 --peers cpprb tianshou numpy", peer="samplers"),
)


class PageError(ValueError):
    """The page's markers are damaged; nothing was written."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    page = options.page
    try:
        refreshed(page.read_text(), {})  # a damaged page is told before half an hour is spent
    except (OSError, PageError) as error:
        sys.stderr.write(f"error: {page}: {error}\n")
        return 2
    chosen = [b for b in BENCHMARKS if _is_wanted(b, options)]
    try:
        failed = run_all(chosen, page)
    except KeyboardInterrupt:
        say("interrupted; what had ended by then is in the page")
        return 130
    if failed:
        say(f"failed: {', '.join(failed)}; their old entries stay")
    say(f"{len(chosen) - len(failed)} of {len(chosen)} are in {page}")
    return 1 if failed else 0


def run_all(chosen: Sequence[Short], page: Path) -> list[str]:
    """One after another, each into the page; the names of those that failed."""
    failed = []
    for number, benchmark in enumerate(chosen, 1):
        say(f"{number}/{len(chosen)} {benchmark.command}")
        entry = measured(benchmark)
        if entry is None:
            failed.append(benchmark.name)
            continue
        _write(page, refreshed(page.read_text(), {benchmark.name: entry}))
    return failed


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--peers", action="store_true", help="install other systems to compare with"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="(default %(default)s)")
    return parser.parse_args(arguments)


def _is_wanted(benchmark: Short, options: argparse.Namespace) -> bool:
    if options.only is not None:
        return benchmark.name in options.only
    return options.peers or not benchmark.peer


def measured(benchmark: Short, limit_s: float = LIMIT_S) -> str | None:
    """The entry for the page: command, circumstances, output. None if it failed or was slow."""
    started = time.monotonic()
    machine = machine_line()
    code, output = _run(benchmark, limit_s)
    seconds = time.monotonic() - started
    lines = [line.rstrip() for line in _ESCAPES.sub("", output).splitlines() if line.strip()]
    if code != 0:
        cause = f"took more than {limit_s:.0f} s" if code is None else f"exit code {code}"
        say(f"{benchmark.name}: {cause}\n" + "\n".join(lines[-15:]))
        return None
    shown = "\n".join(lines[-MOST_LINES:]).replace("~~~", "~ ~")
    return f"`{benchmark.command}`, {seconds:.0f} s: {machine}\n\n~~~text\n{shown}\n~~~"


def _run(benchmark: Short, limit_s: float) -> tuple[int | None, str]:
    """Exit code, None after `limit_s`, and output. Nothing that it started survives, in whatever
    session: a run makes one of its own.
    """
    started: set[psutil.Process] = set()
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, f"benchmarks/{benchmark.name}.py", *benchmark.words.split()],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": python_path(), "COLUMNS": "118", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                # While it lives: what it leaves behind can't be told from others.
                started |= descendants(process.pid)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(LOOK_S, limit_s))
            code = process.poll()
        finally:
            started |= descendants(process.pid)
            process.kill()  # nothing happens if it has ended
            end_all(started, grace_s=0.0)
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def refreshed(page: str, entries: Mapping[str, str]) -> str:
    """`page` with `entries` by name in its generated part; all else stays as it is.

    A page without markers gets them at its end. Raises PageError for one marker without the other.
    """
    if page.count(BEGIN) != page.count(END) or page.count(BEGIN) > 1:
        raise PageError(
            f"needs one line {BEGIN!r} and one line {END!r}, or none of both; it has "
            f"{page.count(BEGIN)} and {page.count(END)}"
        )
    if not page.count(BEGIN):
        before, old, after = page.rstrip("\n") + "\n\n", "", "\n"
    else:
        before, _, rest = page.partition(BEGIN)
        old, found, after = rest.partition(END)
        if not found:
            raise PageError(f"has {END!r} before {BEGIN!r}")
    parts = _ENTRY.split(old)
    kept = {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    kept.update(entries)
    order = {benchmark.name: place for place, benchmark in enumerate(BENCHMARKS)}
    names = sorted(kept, key=lambda name: (order.get(name, len(order)), name))
    body = "\n\n".join([HEAD, *(f"### {name}\n\n{kept[name]}" for name in names)])
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def _write(page: Path, text: str) -> None:
    temporary = page.with_name(f".{page.name}")
    temporary.write_text(text)
    os.replace(temporary, page)


def say(text: str) -> None:
    sys.stdout.write(f"[bench] {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
