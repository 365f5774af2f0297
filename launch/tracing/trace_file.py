"""Files with stacks in the run directory: what everybody did when a step was slow or overdue."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.control.runtime import Child
from launch.tracing.in_flight import Work, work_lines
from launch.tracing.stacks import PY_SPY_LIMIT_S, own_stacks, stacks_of, waits_for

SLOW_STEP = "slow_step_trace"
DEADLINE = "deadline_trace"
MOST_FILES = 50  # of a kind; older ones go
MOST_AWAITED = 3  # processes whose stacks are added because somebody waits for their kind

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trace:
    """file: empty if it could not be written; waits_for: the kind of process, empty if unknown"""

    file: str
    waits_for: str


class TraceFiles:
    """Used from the driver's threads, one at a time by a lock."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._run_dir = run_dir
        self._clock = clock
        self._lock = threading.Lock()

    def write(
        self,
        kind: str,
        headline: str,
        concerned: Child,
        children: Sequence[Child],
        work: Sequence[Work],
        now: float,
    ) -> Trace:
        """Takes some tenths of a second, mostly to look into `concerned`, and twice PY_SPY_LIMIT_S
        at most; never raises OSError.

        work, now: what all are at, on the run's clock
        """
        with self._lock:
            began = time.monotonic()
            stacks = {concerned.name: _stacks_of_child(concerned)}
            whom = waits_for(stacks[concerned.name])
            awaited = [child for child in children if child.role == whom != concerned.role]
            for child in awaited[:MOST_AWAITED]:
                if time.monotonic() - began < PY_SPY_LIMIT_S:
                    stacks[child.name] = _stacks_of_child(child)
            parts = [
                headline + (f"; it waits for {whom}" if whom else ""),
                "\n".join(["", "who is at what:", *work_lines(work, children, now)]),
            ]
            parts += [f"\nstacks of {name}:\n{text}" for name, text in stacks.items()]
            parts.append(f"\nstacks of the driver (process {os.getpid()}):\n{own_stacks()}")
            return Trace(self._save(kind, "\n".join(parts)), whom)

    def _save(self, kind: str, text: str) -> str:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock()))
        path = self._run_dir / f"{kind}_{stamp}.log"
        number = 1
        while path.exists():
            number += 1
            path = self._run_dir / f"{kind}_{stamp}-{number}.log"
        try:
            path.write_text(text, encoding="utf-8")
            files = sorted(self._run_dir.glob(f"{kind}_*.log"), key=lambda p: p.stat().st_mtime_ns)
            for old in files[:-MOST_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("[monitor] cannot write %s (%s)", path, error)
            return ""
        return path.name


def _stacks_of_child(child: Child) -> str:
    if not child.pid:
        return "it has not answered yet, so its process is not known\n"
    if child.pid == os.getpid():
        return "it is an object of the driver's process; see there\n"
    if child.host not in ("", socket.gethostname()):
        return f"it runs on {child.host}; py-spy reaches processes of this machine only\n"
    return f"process {child.pid}\n{stacks_of(child.pid)}"
