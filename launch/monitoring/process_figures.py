"""CPU and memory of a run's processes on this machine, each with the processes that it started.

A look at all processes of the machine costs some 10 microseconds each; unique memory (USS) costs
about ten milliseconds a process, and is therefore read seldom.
"""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

_MEBIBYTE = 1 << 20
GONE = "it is gone"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process takes, with those below it that are not watched themselves; None where it
    can't be read, with the reason.

    cpu_percent: of one core, since the last sample
    rss_mb, uss_mb: MiB resident, and shared with nobody
    """

    cpu_percent: float | None = None
    rss_mb: float | None = None
    uss_mb: float | None = None
    missing_reason: str = ""

    @property
    def figures(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in ("cpu_percent", "rss_mb", "uss_mb")}


class ProcessFigures:
    """Used from one thread."""

    def __init__(self, uss_interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._uss_interval_s = uss_interval_s
        self._clock = clock
        self._watched: dict[str, psutil.Process | str] = {}  # or why it can't be read
        self._uss: dict[psutil.Process, tuple[float, float]] = {}  # read at, MiB

    def watch(self, name: str, pid: int, host: str) -> None:
        """host: that has the process; empty is this machine"""
        here = socket.gethostname()
        if host not in ("", here):
            self._watched[name] = f"it is on {host}; the monitor reads processes of {here} only"
            return
        try:
            process = psutil.Process(pid)
            process.cpu_percent()  # the first call only starts the interval
        except psutil.Error:
            self._watched[name] = GONE
        else:
            self._watched[name] = process

    def unwatch(self, name: str) -> None:
        self._watched.pop(name, None)

    def pid(self, name: str) -> int | None:
        """None for one that is not watched, or on another machine."""
        process = self._watched.get(name)
        return process.pid if isinstance(process, psutil.Process) else None

    def sample(self) -> dict[str, Usage]:
        """Of every process that is watched, by its name; those of a serial run are one process."""
        roots = dict.fromkeys(p for p in self._watched.values() if isinstance(p, psutil.Process))
        below = _processes_below(roots)
        self._uss = {root: read for root, read in self._uss.items() if root in roots}
        usage = {root: self._measure(root, below[root]) for root in roots}
        return {
            name: Usage(missing_reason=each) if isinstance(each, str) else usage[each]
            for name, each in self._watched.items()
        }

    def memory_mb(self, usage: Mapping[str, Usage]) -> float:
        """Of all processes of `usage`, each counted once."""
        by_pid = {self.pid(name): each for name, each in usage.items()}
        return sum(each.uss_mb or each.rss_mb or 0.0 for each in by_pid.values())

    def _measure(self, root: psutil.Process, below: list[psutil.Process]) -> Usage:
        if not root.is_running():  # notices a pid that was given away
            return Usage(missing_reason=GONE)
        try:
            cpu_percent, rss_mb = _cpu_and_rss(root)
        except psutil.Error as error:
            return Usage(missing_reason=str(error))
        for process in below:
            with suppress(psutil.Error):  # it has just ended
                cpu, rss = _cpu_and_rss(process)
                cpu_percent, rss_mb = cpu_percent + cpu, rss_mb + rss
        return Usage(cpu_percent, rss_mb, self._uss_mb(root, below))

    def _uss_mb(self, root: psutil.Process, below: list[psutil.Process]) -> float | None:
        now = self._clock()
        if root not in self._uss or now - self._uss[root][0] >= self._uss_interval_s:
            own = _uss_mb(root)
            if own is None:
                return None
            self._uss[root] = (now, own + sum(_uss_mb(process) or 0.0 for process in below))
        return self._uss[root][1]


def _processes_below(roots: Iterable[psutil.Process]) -> dict[psutil.Process, list[psutil.Process]]:
    """Of each root those that it started, and that these started, down to other roots."""
    roots = list(roots)
    pids = {root.pid for root in roots}
    children: defaultdict[int, list[psutil.Process]] = defaultdict(list)
    # Its objects are kept from look to look, as `cpu_percent` needs it.
    for process in psutil.process_iter(["ppid"]):
        if process.pid not in pids:
            children[process.info["ppid"]].append(process)
    below: dict[psutil.Process, list[psutil.Process]] = {}
    for root in roots:
        found = below[root] = list(children[root.pid])
        for process in found:  # which grows meanwhile
            found += children[process.pid]
    return below


def _cpu_and_rss(process: psutil.Process) -> tuple[float, float]:
    with process.oneshot():
        return process.cpu_percent(), process.memory_info().rss / _MEBIBYTE


def _uss_mb(process: psutil.Process) -> float | None:
    try:
        return process.memory_full_info().uss / _MEBIBYTE
    except psutil.Error:  # it has ended, or belongs to somebody else
        return None
