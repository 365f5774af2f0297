"""The driver of a run and the Ray below it, which its own monitor counts as one."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.measured_span import Span
from benchmarks.training_run import child_pids

LOOK_EVERY_S = 8.0  # unique memory costs about ten milliseconds a process
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Seen:
    """One process at one look."""

    program: str
    parents: tuple[int, ...]
    resident: float  # MiB
    unique: float  # MiB
    cpu_s: float  # since it began


class FamilyWatch:
    """What the run's own monitor counts as the driver's, one by one: the driver itself, Ray's
    daemons and idle workers."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._named: dict[int, str] = {}
        self._looks: list[tuple[float, dict[int, Seen]]] = []
        self._due = 0.0

    def look(self, driver_pid: int) -> None:
        """Called often; looks now and then. A process that ends meanwhile is left out."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LOOK_EVERY_S
        self._named |= {pid: name for name, pid in child_pids(self._run_dir).items()}
        self._named[driver_pid] = "driver"
        seen: dict[int, Seen] = {}
        with suppress(psutil.Error):
            driver = psutil.Process(driver_pid)
            for process in (driver, *driver.children(recursive=True)):
                with suppress(psutil.Error):
                    seen[process.pid] = _see(process)
        self._looks.append((time.time(), seen))

    def rows(self, span: Span) -> list[tuple[str, float, float, float]]:
        """Name, MiB resident and unique (largest of all looks), CPU % within the span."""
        programs = {pid: one.program for _, look in self._looks for pid, one in look.items()}
        groups: dict[str, list[tuple[float, float, float, float]]] = {}
        for at, look in self._looks:
            sums: dict[str, tuple[float, float, float]] = {}
            for pid, one in look.items():
                if self._owner(pid, one) != "driver":
                    continue
                name = self._group(pid, programs[pid])
                before = sums.get(name, (0.0, 0.0, 0.0))
                new = (one.resident, one.unique, one.cpu_s)
                sums[name] = tuple(a + b for a, b in zip(before, new, strict=True))
            for name, figures in sums.items():
                groups.setdefault(name, []).append((at, *figures))
        began, ended = (float(span.records[i]["timestamp"]) for i in (0, -1))
        rows = []
        for name, looks in sorted(groups.items()):
            inside = [(at, cpu_s) for at, _, _, cpu_s in looks if began <= at <= ended]
            cpu = math.nan
            if len(inside) > 1:
                cpu = 100.0 * (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])
            rows.append((name, max(x[1] for x in looks), max(x[2] for x in looks), cpu))
        return rows

    def _owner(self, pid: int, one: Seen) -> str:
        """Who is the nearest above it that has a name, itself included."""
        return next((self._named[p] for p in (pid, *one.parents) if p in self._named), "driver")

    def _group(self, pid: int, program: str) -> str:
        if pid in self._named:
            return self._named[pid]
        return "Ray's idle workers" if program.startswith("ray::IDLE") else "Ray's daemons"


def _see(process: psutil.Process) -> Seen:
    memory, cpu = process.memory_full_info(), process.cpu_times()
    return Seen(
        program=(process.cmdline() or [process.name()])[0].split()[0].rsplit("/", 1)[-1],
        parents=tuple(parent.pid for parent in process.parents()),
        resident=memory.rss / MEBIBYTE,
        unique=memory.uss / MEBIBYTE,
        cpu_s=cpu.user + cpu.system,
    )
