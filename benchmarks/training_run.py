"""Starts `launch/train.py` as users do and reads what the run writes; for the benchmarks of whole
runs. One run at a time; it lives in a session of its own, and never outlasts the call.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from launch.control.descendants import descendants, end_all
from launch.monitoring.json_lines import JsonLinesReader

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.5
START_LIMIT_S = 300.0  # until learning begins
STOP_LIMIT_S = 120.0  # drain, final checkpoint, Ray's end
STOPPED_RESUMABLE = 75

# Neither evaluations nor checkpoints compete for the cores while speed is measured.
UNDISTURBED = (
    "--evaluation.every-env-steps=1000000000",
    "--evaluation.final-episodes=1",
    "--control.checkpoint-every-env-steps=1000000000",
)


def machine_line() -> str:
    """Processor, cores, versions, load, commit and date, for the head of a table."""
    load = os.getloadavg()[0]
    return (
        f"{cpu_model()}, {n_cores()} cores, load {load:.1f}, Python {platform.python_version()}, "
        f"commit {commit()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def n_cores() -> int:
    return len(os.sched_getaffinity(0))


def commit() -> str:
    """Short hash, with a + when tracked files differ from it, those in docs/ aside."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def python_path() -> str:
    """This checkout first, and what else the benchmark was started with."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def train(
    run_dir: Path,
    arguments: Sequence[str],
    *,
    seconds: float,
    watch: Callable[[int], bool | None] | None = None,
) -> list[dict[str, object]]:
    """Runs to its end, or `seconds` of learning, and returns its metric records.

    `watch(pid of the driver)` is called now and then while it runs, and ends it by a true answer. A
    failed run raises RuntimeError with the end of its output, which is in <run_dir>.log.
    """
    if run_dir.exists():
        raise RuntimeError(f"{run_dir} is there already; remove it or choose another --output")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log_path = run_dir.with_name(f"{run_dir.name}.log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "launch/train.py", *arguments, "--run-dir", str(run_dir.resolve())],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": python_path()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = _accompany(process, run_dir, seconds, watch)
        finally:
            _end(process)
    if code not in (0, STOPPED_RESUMABLE):
        raise RuntimeError(f"run failed with exit code {code}:\n{log_path.read_text()[-3000:]}")
    return JsonLinesReader(run_dir / "metrics.jsonl").read_new()


def child_pids(run_dir: Path) -> dict[str, int]:
    """Name and pid of every child process, from the newest heartbeat."""
    path = run_dir / "heartbeat.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    processes = json.loads(lines[-1])["processes"] if lines else {}
    return {name: beat["pid"] for name, beat in processes.items() if beat["pid"]}


def _accompany(
    process: subprocess.Popen[bytes],
    run_dir: Path,
    seconds: float,
    watch: Callable[[int], bool | None] | None,
) -> int:
    """Waits for the run's end, asking it to stop once it has learned for `seconds`."""
    reader = JsonLinesReader(run_dir / "metrics.jsonl")
    learned_from: float | None = None
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
        if learned_from is None and any(r["update"] for r in reader.read_new()):
            learned_from = time.monotonic()
            deadline = learned_from + seconds
        if watch is not None and watch(process.pid):
            break
    has_ended = process.poll() is not None
    if not has_ended:
        process.send_signal(signal.SIGINT)
    code = process.wait(timeout=STOP_LIMIT_S)
    if learned_from is None and code in (0, STOPPED_RESUMABLE):
        when = "before the run ended" if has_ended else f"within {START_LIMIT_S:.0f} s"
        raise RuntimeError(f"learning did not begin {when}; see {run_dir}")
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the run survives, whatever happened and whatever sessions its parts made."""
    if process.poll() is None:
        below = descendants(process.pid)
        process.kill()
        end_all(below, grace_s=0.0)
        process.wait()
