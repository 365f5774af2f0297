"""The monitor as an actor: a thin shell that the runtime starts in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launch.monitoring.json_lines import Scalar
from launch.monitoring.monitor import Heartbeat, Monitor, MonitorConfig
from launch.monitoring.object_store import SpillReader
from launch.monitoring.rotation import Rotation


class MonitorActor:
    """Owns nothing that a restart would lose: the controller tells it all pids again."""

    def __init__(
        self,
        run_dir: Path | None = None,
        config: MonitorConfig | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        self._monitor = Monitor(run_dir, config, rotation=rotation)
        self._spills = SpillReader()

    def watch(self, name: str, pid: int, host: str = "") -> None:
        """host: that has the process; empty is the monitor's"""
        self._monitor.watch({name: pid}, host)

    def sample(self, beats: Sequence[Heartbeat] = ()) -> dict[str, Scalar]:
        """Takes in who was heard from since the last call and returns the figures.

        Also writes one heartbeat line.
        """
        for beat in beats:
            self._monitor.beat(beat.process, beat.phase, beat.age_s, beat.state)
        figures = self._monitor.sample()
        self._monitor.write_heartbeat()
        spilled = self._spills.bytes()
        return figures if spilled is None else {**figures, "object_store_spilled_bytes": spilled}

    def stalled(self, deadline_s: float | None = None) -> list[Heartbeat]:
        return self._monitor.stalled(deadline_s)

    def ping(self) -> int:
        """This process's pid."""
        return os.getpid()
