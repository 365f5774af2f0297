"""The health of every child, by name; tells of each change, and who may get work."""

from __future__ import annotations

import time
from collections.abc import Callable

from launch.control.child_health import COMING, UP, ChildHealth, State
from launch.control.fleet import Fleet
from launch.control.reporter import Reporter
from launch.control.runtime import Child


class Roster:
    """Owned by the controller, called from its one thread. A successor has its child's name."""

    def __init__(
        self,
        fleet: Fleet,
        reporter: Reporter,
        max_restarts: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._reporter = reporter
        self._max_restarts = max_restarts
        self._clock = clock
        self._health: dict[str, ChildHealth] = {}
        self._since: dict[str, float] = {}
        self._members: dict[State, dict[str, Child]] = {state: {} for state in State}

    def begin(self) -> None:
        """The fleet has been started."""
        for child in self._fleet.children():
            self._health[child.name] = ChildHealth(self._max_restarts)
            self._tell(child, None)

    # ------------------------------------------------------------------ questions

    def state(self, child: Child) -> State:
        return self._health[child.name].state

    def seconds_in_state(self, child: Child) -> float:
        return self._clock() - self._since[child.name]

    def n_failures(self, child: Child) -> int:
        """Within the last hour."""
        return self._health[child.name].n_failures(self._clock())

    def takes_work(self, child: Child | None) -> bool:
        """Whether it may be given something new to do; not one that is late or has to go."""
        return child is not None and self.state(child) is State.HEALTHY

    def is_up(self, child: Child) -> bool:
        """Whether it answered last, and has not failed since."""
        return self.state(child) in UP

    def is_coming(self, child: Child) -> bool:
        return self.state(child) in COMING

    def all_in(self, *states: State) -> list[Child]:
        """In the order in which they came into these states, one state after the other."""
        return [child for state in states for child in self._members[state].values()]

    def due(self) -> list[Child]:
        """Children whose back-off is over."""
        now = self._clock()
        waiting = self.all_in(State.RESTARTING)
        return [child for child in waiting if self._health[child.name].restart_at <= now]

    # ------------------------------------------------------------------ events

    def answered(self, child: Child) -> None:
        self._change(child, lambda health: health.answered(self._clock()))

    def overdue(self, child: Child) -> None:
        self._change(child, ChildHealth.overdue)

    def failed(self, child: Child) -> None:
        self._change(child, lambda health: health.failed(self._clock()))

    def restarted(self, child: Child) -> None:
        self._change(child, lambda health: health.restarted(self._clock()))

    def drain(self, child: Child) -> None:
        self._change(child, ChildHealth.drain)

    def vacated(self, child: Child) -> None:
        self._change(child, lambda health: health.vacated(self._clock()))

    def end(self) -> None:
        """The run is over."""
        for child in self._fleet.children():
            self._change(child, ChildHealth.stop)

    def _change(self, child: Child, event: Callable[[ChildHealth], bool]) -> None:
        """Lets an event happen to a child's health, and tells of it if that changed the state."""
        before = self.state(child)
        if event(self._health[child.name]):
            self._tell(child, before)

    def _tell(self, child: Child, before: State | None) -> None:
        now = self._clock()
        self._since[child.name] = now
        health = self._health[child.name]
        if before is not None:
            del self._members[before][child.name]
        self._members[health.state][child.name] = child
        wait_s = max(0.0, health.restart_at - now) if health.state is State.RESTARTING else 0.0
        self._reporter.child_state(child.name, before or "", health.state, wait_s)
