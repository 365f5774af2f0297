"""Watches a run from outside its hot paths: CPU, memory, GPU, heartbeats, who is stuck.

Plain Python without threads; see process_figures.py for what a sample costs.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.monitoring.gpu_reader import GpuReader
from launch.monitoring.json_lines import JsonLinesFile, Scalar
from launch.monitoring.process_figures import ProcessFigures, Usage
from launch.monitoring.rotation import Rotation

HEARTBEAT_FILE = "heartbeat.jsonl"
_NUMBER = re.compile(r"-\d+$")


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    gpu_interval_s: float = 1.0  # NVML is asked at most this often; lower costs more
    gpu_window: int = 30  # readings in the sliding mean of GPU utilisation
    uss_interval_s: float = 15.0  # unique memory is read at most this often; lower costs more
    stall_after_s: float = 120.0  # a process silent for longer counts as stalled

    def __post_init__(self) -> None:
        for name in ("gpu_interval_s", "uss_interval_s", "stall_after_s"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"monitor.{name} must be above 0, got {getattr(self, name)}; it is in seconds"
                )
        if self.gpu_window < 1:
            raise ValueError(f"monitor.gpu_window must be at least 1, got {self.gpu_window}")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life of one process."""

    process: str
    phase: str  # what it said it was doing
    age_s: float
    state: str = ""  # what its supervisor holds of it


def role_of(process: str) -> str:
    """What a process is, without which of its kind.

    >>> role_of("prior-engine-1")
    'prior_engine'
    """
    return _NUMBER.sub("", process).replace("-", "_")


class Monitor:
    """Samples the processes of a run; called by the controller or inside the monitor actor."""

    def __init__(
        self,
        run_dir: Path | None = None,
        config: MonitorConfig | None = None,
        *,
        gpu: GpuReader | None = None,
        rotation: Rotation | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Heartbeats go to heartbeat.jsonl in `run_dir`, put aside by `rotation`; None: nowhere."""
        self.config = config or MonitorConfig()
        self._clock = clock
        self._gpu = gpu or GpuReader(
            interval_s=self.config.gpu_interval_s, window=self.config.gpu_window
        )
        self._file = None if run_dir is None else JsonLinesFile(run_dir / HEARTBEAT_FILE, rotation)
        self._figures = ProcessFigures(self.config.uss_interval_s, clock)
        self._usage: dict[str, Usage] = {}  # as sampled last
        self._beats: dict[str, tuple[float, str, str]] = {}  # process -> (beaten at, phase, state)
        psutil.cpu_percent()  # the first call only starts the interval

    def watch(self, pids: Mapping[str, int], host: str = "") -> None:
        """Adds processes or, after a restart, gives known names their new pids.

        host: that has them; empty is this machine
        """
        for name, pid in pids.items():
            self._figures.watch(name, pid, host)
            self.beat(name, "started")

    def unwatch(self, name: str) -> None:
        self._figures.unwatch(name)
        self._usage.pop(name, None)
        self._beats.pop(name, None)

    def sample(self) -> dict[str, Scalar]:
        """CPU, memory and GPU figures since the last call, named as in docs/metrics.md.

        Processes of one role are summed up, so that a thousand of them make no longer record; what
        each takes is in the next heartbeat. A role whose processes are all gone has no figures.
        """
        memory = psutil.virtual_memory()
        self._usage = self._figures.sample()
        metrics: dict[str, Scalar] = {
            "cpu_percent_machine": psutil.cpu_percent(),
            "memory_used_percent": memory.percent,
            "memory_processes_mb": self._figures.memory_mb(self._usage),
            **_by_role(self._usage),
        }
        gpu = self._gpu.read()
        metrics["gpu_count"] = gpu.count
        metrics["gpu_util_last"] = gpu.util_last
        metrics["gpu_util_mean_window"] = gpu.util_mean_window
        metrics["gpu_mem_used_mb"] = gpu.mem_used_mb
        metrics["gpu_power_w"] = gpu.power_w
        metrics["gpu_missing_reason"] = gpu.missing_reason
        return metrics

    def beat(self, process: str, phase: str, age_s: float = 0.0, state: str = "") -> None:
        """Notes a sign of life: `process` was in `phase` `age_s` ago, and is in `state` now."""
        self._beats[process] = (self._clock() - age_s, phase, state)

    def heartbeats(self) -> list[Heartbeat]:
        """All processes, the longest silent first."""
        now = self._clock()
        beats = [
            Heartbeat(n, phase, now - at, state) for n, (at, phase, state) in self._beats.items()
        ]
        return sorted(beats, key=lambda beat: -beat.age_s)

    def stalled(self, deadline_s: float | None = None) -> list[Heartbeat]:
        """Processes silent for longer than `deadline_s` (default: the configured one)."""
        limit = self.config.stall_after_s if deadline_s is None else deadline_s
        return [beat for beat in self.heartbeats() if beat.age_s > limit]

    def write_heartbeat(self) -> None:
        """One line of heartbeat.jsonl: phase, age, and what was sampled last, of every process."""
        if self._file is None:
            return
        processes = {
            beat.process: {
                "phase": beat.phase,
                "state": beat.state,
                "age_s": round(beat.age_s, 3),
                "pid": self._figures.pid(beat.process),
                "is_stalled": beat.age_s > self.config.stall_after_s,
                **_rounded(self._usage.get(beat.process, Usage())),
            }
            for beat in self.heartbeats()
        }
        self._file.append({"timestamp": time.time(), "processes": processes})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _by_role(usage: Mapping[str, Usage]) -> dict[str, float]:
    """Mean and maximum over the processes of each role that could be measured."""
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, each in usage.items():
        for figure, value in each.figures.items():
            if value is not None:
                measured[figure, role_of(name)].append(value)
    metrics = {}
    for (figure, role), values in measured.items():
        metrics[f"{figure}_mean/{role}"] = sum(values) / len(values)
        metrics[f"{figure}_max/{role}"] = max(values)
    return metrics


def _rounded(usage: Usage) -> dict[str, float | str | None]:
    """Short in a file that has a line with all processes every few seconds."""
    figures = {n: None if v is None else round(v, 1) for n, v in usage.figures.items()}
    return figures | ({"missing_reason": usage.missing_reason} if usage.missing_reason else {})
