"""Which process works at what, since when, and how much waits behind it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from launch.control.runtime import Child


@dataclass(slots=True, eq=False)
class Ask:
    """One call of the driver's that is not answered yet, equal to itself only."""

    child: Child
    method: str
    issued_at: float
    is_first: bool  # of its kind to this process, which then compiles and loads
    args: tuple[object, ...] = ()
    deadline_s: float = inf
    is_counted: bool = False  # as a slow step


@dataclass(frozen=True, slots=True)
class Work:
    """What one process is at.

    since:    on the run's clock, when it could begin: what was asked before it was answered then
    n_queued: calls behind it
    """

    ask: Ask
    since: float
    n_queued: int


class InFlight:
    """Written by the driver's main thread, read by that and by one that watches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asks: dict[Child, dict[Ask, None]] = {}  # by time of issue
        self._answered_at: dict[Child, float] = {}
        self._known: dict[Child, set[str]] = {}  # methods that it has answered

    def begin(
        self,
        child: Child,
        method: str,
        now: float,
        args: tuple[object, ...] = (),
        deadline_s: float = inf,
    ) -> Ask:
        with self._lock:
            is_first = method not in self._known.get(child, ())
            ask = Ask(child, method, now, is_first, args, deadline_s)
            self._asks.setdefault(child, {})[ask] = None
            return ask

    def end(self, ask: Ask, now: float) -> float:
        """It was answered; returns the seconds of work at it, without those in a queue."""
        with self._lock:
            asks = self._asks.get(ask.child, {})
            asks.pop(ask, None)
            since = max(ask.issued_at, self._answered_at.get(ask.child, ask.issued_at))
            self._answered_at[ask.child] = now
            self._known.setdefault(ask.child, set()).add(ask.method)
            return now - since

    def forget(self, child: Child) -> None:
        """Its process is gone, and what it was asked with it."""
        with self._lock:
            for known in (self._asks, self._answered_at, self._known):
                known.pop(child, None)

    def work(self) -> list[Work]:
        """Of every process that was asked something."""
        with self._lock:
            found = []
            for child, asks in self._asks.items():
                if asks:
                    ask = next(iter(asks))
                    since = max(ask.issued_at, self._answered_at.get(child, ask.issued_at))
                    found.append(Work(ask, since, len(asks) - 1))
            return found


def work_lines(work: Sequence[Work], children: Sequence[Child], now: float) -> list[str]:
    """One line a process: for how long it has worked at what, or that it has nothing to do."""
    at = {item.ask.child.name: item for item in work}
    lines = []
    for name in sorted(child.name for child in children):
        item = at.get(name)
        if item is None:
            lines.append(f"{name}: has nothing to do, and waits for the driver to ask")
            continue
        queued = f", {item.n_queued} more asked for" if item.n_queued else ""
        lines.append(f"{name}: {item.ask.method} for {now - item.since:.1f} s{queued}")
    return lines
