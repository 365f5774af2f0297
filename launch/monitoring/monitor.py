"""Watches a run from outside its hot paths: CPU, memory, GPU, heartbeats, who is stuck.

Plain Python without threads; a sample of ten processes costs about a millisecond, the unique memory
(USS) about ten more per process and is therefore read seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.monitoring.gpu_reader import GpuReader
from launch.monitoring.json_lines import JsonLinesFile, Scalar

HEARTBEAT_FILE = "heartbeat.jsonl"
_MEBIBYTE = 1 << 20


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


class Monitor:
    """Samples the processes of a run; called by the controller or inside the monitor actor."""

    def __init__(
        self,
        run_dir: Path | None = None,
        config: MonitorConfig | None = None,
        *,
        gpu: GpuReader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Heartbeats go to `run_dir`/heartbeat.jsonl; None writes nothing."""
        self.config = config or MonitorConfig()
        self._clock = clock
        self._gpu = gpu or GpuReader(
            interval_s=self.config.gpu_interval_s, window=self.config.gpu_window
        )
        self._file = JsonLinesFile(run_dir / HEARTBEAT_FILE) if run_dir is not None else None
        self._processes: dict[str, psutil.Process | None] = {}
        self._uss: dict[str, tuple[float, float]] = {}  # process -> (read at, MB)
        self._beats: dict[str, tuple[float, str, str]] = {}  # process -> (beaten at, phase, state)
        psutil.cpu_percent()  # the first call only starts the interval

    def watch(self, pids: Mapping[str, int]) -> None:
        """Adds processes or, after a restart, gives known names their new pids."""
        for name, pid in pids.items():
            self._uss.pop(name, None)
            try:
                process = psutil.Process(pid)
                process.cpu_percent()
            except psutil.Error:
                self._processes[name] = None
            else:
                self._processes[name] = process
            self.beat(name, "started")

    def unwatch(self, name: str) -> None:
        for known in (self._processes, self._uss, self._beats):
            known.pop(name, None)

    def sample(self) -> dict[str, Scalar]:
        """CPU, memory and GPU figures since the last call, named as in docs/metrics.md.

        A process that is gone has null figures.
        """
        memory = psutil.virtual_memory()
        metrics: dict[str, Scalar] = {
            "cpu_percent_machine": psutil.cpu_percent(),
            "memory_used_percent": memory.percent,
        }
        total_mb = 0.0
        for name, process in self._processes.items():
            cpu_percent, rss_mb, uss_mb = self._sample_process(name, process)
            metrics[f"cpu_percent/{name}"] = cpu_percent
            metrics[f"rss_mb/{name}"] = rss_mb
            metrics[f"uss_mb/{name}"] = uss_mb
            total_mb += uss_mb or rss_mb or 0.0
        metrics["memory_processes_mb"] = total_mb
        gpu = self._gpu.read()
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
        """One line of heartbeat.jsonl with the phase and age of every process."""
        if self._file is None:
            return
        processes = {
            beat.process: {
                "phase": beat.phase,
                "state": beat.state,
                "age_s": round(beat.age_s, 3),
                "pid": self._pid(beat.process),
                "is_stalled": beat.age_s > self.config.stall_after_s,
            }
            for beat in self.heartbeats()
        }
        self._file.append({"timestamp": time.time(), "processes": processes})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _pid(self, name: str) -> int | None:
        process = self._processes.get(name)
        return None if process is None else process.pid

    def _sample_process(
        self, name: str, process: psutil.Process | None
    ) -> tuple[float | None, float | None, float | None]:
        if process is None or not process.is_running():  # notices a pid that was given away
            return None, None, None
        try:
            cpu_percent = process.cpu_percent()
            rss_mb = process.memory_info().rss / _MEBIBYTE
            return cpu_percent, rss_mb, self._uss_mb(name, process)
        except psutil.Error:
            return None, None, None

    def _uss_mb(self, name: str, process: psutil.Process) -> float:
        now = self._clock()
        read_at, uss_mb = self._uss.get(name, (float("-inf"), 0.0))
        if now - read_at >= self.config.uss_interval_s:
            uss_mb = process.memory_full_info().uss / _MEBIBYTE
            self._uss[name] = (now, uss_mb)
        return uss_mb
