"""Children that no node has room for, and how many env actors are left without them."""

from __future__ import annotations

from launch.control.call_book import RunFailed
from launch.control.child_health import State
from launch.control.fleet import Fleet
from launch.control.reporter import Reporter
from launch.control.roster import Roster
from launch.control.runtime import Child, Runtime

EXPENDABLE = ("evaluator", "monitor", "reanalyser")  # the run goes on without them
NOTICE_S = 10.0  # Ray finds a place within a second where there is one


class Room:
    """Owned by the supervisor. A child without room fails at nothing: it waits."""

    def __init__(
        self, runtime: Runtime, fleet: Fleet, roster: Roster, reporter: Reporter, min_actors: int
    ) -> None:
        self._runtime = runtime
        self._fleet = fleet
        self._roster = roster
        self._reporter = reporter
        self._min_actors = min_actors
        self._waiting: set[str] = set()  # told of

    def is_waiting(self, child: Child) -> bool:
        return child.name in self._waiting

    def forget(self, child: Child) -> None:
        """It answered, or is begun anew."""
        self._waiting.discard(child.name)

    def look_around(self) -> None:
        """Tells of children that should have found a place by now."""
        for child in self._roster.all_in(State.STARTING):
            is_told = self.is_waiting(child)
            if not is_told and self._roster.seconds_in_state(child) > NOTICE_S:
                self.tell_if_waiting(child)

    def tell_if_waiting(self, child: Child) -> bool:
        """Whether no node has room for `child` now; told of once."""
        if self._runtime.place_of(child) is not None:
            return False
        if not self.is_waiting(child):
            self._waiting.add(child.name)
            self._reporter.event(
                "child_without_room",
                child=child.name,
                env_actors_left=self.n_env_actors_left,
                cause="no node has room for it; it starts when one has",
            )
        return True

    @property
    def n_env_actors_left(self) -> int:
        """Those that are neither quarantined nor without room."""
        return sum(
            self._roster.state(child) is not State.QUARANTINED and not self.is_waiting(child)
            for child in self._fleet.env_actors.values()
        )

    @property
    def shortage(self) -> str:
        """What is wrong if too few env actors are left; empty if they are enough."""
        n_left = self.n_env_actors_left
        if n_left >= self._min_actors:
            return ""
        return f"{n_left} env actors are left, control.min_actors is {self._min_actors}"

    def require(self, child: Child, waited_s: float) -> None:
        """Raises RunFailed if the run can't go on while `child` waits."""
        is_expendable = child.role in EXPENDABLE
        shortage = self.shortage if child.role == "env_actor" else ""
        if is_expendable or (child.role == "env_actor" and not shortage):
            return
        raise RunFailed(
            f"no node has had room for {child.name} for {waited_s:.0f} s"
            + (f"; {shortage}" if shortage else "")
            + "; the same command goes on from the last checkpoint"
        )
