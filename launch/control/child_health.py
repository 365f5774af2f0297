"""What is known of one child: a small state machine without Ray, threads or a clock of its own.

    starting           answered -> healthy; failed -> restarting or quarantined
    healthy, suspect   overdue and answered between them; failed as above; drain -> draining
    draining           vacated or failed -> restarting
    restarting         restarted -> starting, once the back-off is over
    any                stop -> stopped

Every event that does not fit the state is ignored, since answers and failures of a process may
still arrive when it has been given up.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

FIRST_BACKOFF_S = 1.0  # before the second restart in a row; the first one does not wait
LONGEST_BACKOFF_S = 60.0
HEALTHY_SPELL_S = 60.0  # healthy for so long, and the next back-off begins anew
WINDOW_S = 3600.0  # failures further back do not count towards quarantine


class State(StrEnum):
    """Of one child."""

    STARTING = "starting"  # no answer yet
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # a call has taken half its time; no new work
    RESTARTING = "restarting"  # ended, and not yet begun again
    QUARANTINED = "quarantined"  # failed too often, and stays out
    DRAINING = "draining"  # its node is going away; no new work
    STOPPED = "stopped"


UP = (State.HEALTHY, State.SUSPECT, State.DRAINING)
COMING = (State.STARTING, State.RESTARTING)


class ChildHealth:
    """One per child, over all processes that take its place. Times are seconds of any one clock.

    Every event returns whether it changed the state.
    """

    def __init__(self, max_failures: int) -> None:
        """max_failures: within WINDOW_S, those that a restart makes good; the next quarantines"""
        self.state = State.STARTING
        self.restart_at = 0.0  # when restarting
        self._max_failures = max_failures
        self._failures: deque[float] = deque()
        self._n_in_a_row = 0  # failures without a healthy spell between them
        self._healthy_since: float | None = None

    def n_failures(self, now: float) -> int:
        """Those that count."""
        while self._failures and now - self._failures[0] > WINDOW_S:
            self._failures.popleft()
        return len(self._failures)

    def answered(self, now: float) -> bool:
        if self.state not in (State.STARTING, State.SUSPECT):
            return False
        if self._healthy_since is None:
            self._healthy_since = now
        return self._become(State.HEALTHY)

    def overdue(self) -> bool:
        """A call has taken half the time that it may take."""
        return self.state is State.HEALTHY and self._become(State.SUSPECT)

    def failed(self, now: float) -> bool:
        """It died, raised or was silent for too long; a process on a node that goes may do so."""
        if self.state is State.DRAINING:
            return self.vacated(now)
        if self.state not in (State.STARTING, State.HEALTHY, State.SUSPECT):
            return False
        self._failures.append(now)
        since = self._healthy_since
        had_healthy_spell = since is not None and now - since >= HEALTHY_SPELL_S
        self._n_in_a_row = 1 if had_healthy_spell else self._n_in_a_row + 1
        self._healthy_since = None
        if self.n_failures(now) > self._max_failures:
            return self._become(State.QUARANTINED)
        self.restart_at = now + backoff_s(self._n_in_a_row)
        return self._become(State.RESTARTING)

    def restarted(self, now: float) -> bool:
        """Another process was begun in its place."""
        if self.state is not State.RESTARTING or now < self.restart_at:
            return False
        return self._become(State.STARTING)

    def drain(self) -> bool:
        """Its node is about to go."""
        may_drain = self.state in (State.HEALTHY, State.SUSPECT)
        return may_drain and self._become(State.DRAINING)

    def vacated(self, now: float) -> bool:
        """It was ended on a node that goes; that is no failure of its own."""
        if self.state is not State.DRAINING:
            return False
        self._healthy_since = None
        self.restart_at = now
        return self._become(State.RESTARTING)

    def stop(self) -> bool:
        """It is not wanted any more."""
        return self.state is not State.STOPPED and self._become(State.STOPPED)

    def _become(self, state: State) -> bool:
        self.state = state
        return True


def backoff_s(n_in_a_row: int) -> float:
    """Seconds to wait after the n-th failure in a row: 0, 1, 2, 4, ... up to a minute."""
    if n_in_a_row <= 1:
        return 0.0
    doublings = min(n_in_a_row - 2, 16)  # more would only overflow
    return float(min(FIRST_BACKOFF_S * 2.0**doublings, LONGEST_BACKOFF_S))
