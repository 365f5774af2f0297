"""The monitor as an actor: a thin shell that the runtime starts in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launch.monitoring.json_lines import Scalar
from launch.monitoring.monitor import Heartbeat, Monitor, MonitorConfig


class MonitorActor:
    """Owns nothing that a restart would lose: the controller tells it all pids again."""

    def __init__(self, run_dir: Path | None = None, config: MonitorConfig | None = None) -> None:
        self._monitor = Monitor(run_dir, config)

    def watch(self, name: str, pid: int) -> None:
        self._monitor.watch({name: pid})

    def sample(self, beats: Sequence[Heartbeat] = ()) -> dict[str, Scalar]:
        """Takes in who was heard from since the last call and returns the figures.

        Also writes one heartbeat line.
        """
        for beat in beats:
            self._monitor.beat(beat.process, beat.phase, beat.age_s, beat.state)
        self._monitor.write_heartbeat()
        return self._monitor.sample()

    def stalled(self, deadline_s: float | None = None) -> list[Heartbeat]:
        return self._monitor.stalled(deadline_s)

    def ping(self) -> int:
        """This process's pid."""
        return os.getpid()
