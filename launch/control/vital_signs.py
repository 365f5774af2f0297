"""What alerts look at: how long children have been silent, and how old the newest checkpoint is."""

from __future__ import annotations

from collections.abc import Callable

from launch.control.child_health import UP
from launch.monitoring.monitor import Heartbeat, MonitorConfig

SECONDS_PER_MINUTE = 60.0


class VitalSigns:
    """Owned by the reporter: a child that hangs can't tell how long it has been silent."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._beats: dict[str, tuple[float, str]] = {}  # child -> (heard from at, phase)
        self._states: dict[str, str] = {}
        self._saved_at = clock()  # or begun: what would be lost is counted from there

    def beat(self, child: str, phase: str) -> None:
        """`child` has answered a call of the method `phase`."""
        self._beats[child] = (self._clock(), phase)

    def change(self, child: str, state: str) -> None:
        self._states[child] = state
        self._beats.setdefault(child, (self._clock(), state))

    def saved(self) -> None:
        """A checkpoint was made."""
        self._saved_at = self._clock()

    def heartbeats(self) -> list[Heartbeat]:
        now = self._clock()
        return [
            Heartbeat(name, phase, now - at, self._states.get(name, ""))
            for name, (at, phase) in self._beats.items()
        ]

    def figures(self) -> dict[str, float]:
        """Named as in docs/metrics.md; children that start or stay out are not waited for."""
        ages_s = [beat.age_s for beat in self.heartbeats() if beat.state in UP]
        limit_s = MonitorConfig().stall_after_s
        return {
            "heartbeat_age_s_max": max(ages_s, default=0.0),
            "processes_stalled": float(sum(age_s > limit_s for age_s in ages_s)),
            "checkpoint_age_min": (self._clock() - self._saved_at) / SECONDS_PER_MINUTE,
        }
