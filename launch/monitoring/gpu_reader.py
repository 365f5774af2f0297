"""GPU figures through NVML, in this process; never a subprocess, never an exception."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

import pynvml

_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Figures over all GPUs that answer; None with a reason where there is none.

    count:                       GPUs that answer
    util_last, util_mean_window: percent, mean over the GPUs.
    mem_used_mb, power_w:        sums over the GPUs.
    """

    count: int | None = None
    util_last: float | None = None
    util_mean_window: float | None = None
    mem_used_mb: float | None = None
    power_w: float | None = None
    missing_reason: str = ""  # "" while everything could be read


class GpuReader:
    """Reads NVML at most once per interval and keeps a sliding window of utilisation."""

    def __init__(
        self,
        *,
        interval_s: float = 1.0,
        window: int = 30,
        nvml: ModuleType = pynvml,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = interval_s
        self._nvml = nvml
        self._clock = clock
        self._utils: deque[float] = deque(maxlen=window)
        self._handles: list[object] | None = None
        self._read_at = float("-inf")
        self._last = GpuReading(missing_reason="not read yet")

    def read(self) -> GpuReading:
        """The newest reading; NVML is asked only if the last answer is older than the interval."""
        now = self._clock()
        if now - self._read_at >= self._interval_s:
            self._read_at = now
            self._last = self._ask()
        return self._last

    def _ask(self) -> GpuReading:
        nvml = self._nvml
        try:
            if self._handles is None:
                self._handles = self._enumerate()
        except nvml.NVMLError as error:
            return GpuReading(missing_reason=f"NVML: {error}")
        if not self._handles:
            return GpuReading(count=0, missing_reason="the NVIDIA driver shows no GPU")
        living, memory_mb, lost_reason = self._living(self._handles)
        if lost_reason:
            self._handles = None
            self._shut_down()
        if not living:
            return GpuReading(count=0, missing_reason=lost_reason)
        util, util_reason = self._sum(
            living, lambda h: float(nvml.nvmlDeviceGetUtilizationRates(h).gpu)
        )
        power, power_reason = self._sum(living, lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1000.0)
        if util is not None:
            util /= len(living)
            self._utils.append(util)
        mean = sum(self._utils) / len(self._utils) if self._utils else None
        reason = "; ".join(filter(None, (lost_reason, util_reason, power_reason)))
        return GpuReading(len(living), util, mean, memory_mb, power, reason)

    def _enumerate(self) -> list[object]:
        """Handles of all GPUs; raises NVMLError, and leaves NVML shut down then."""
        self._nvml.nvmlInit()
        try:
            count = self._nvml.nvmlDeviceGetCount()
            return [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except self._nvml.NVMLError:
            self._shut_down()
            raise

    def _shut_down(self) -> None:
        """NVML counts its users: only after the last one's end does nvmlInit look for GPUs anew,
        and finds one that was reset.
        """
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _living(self, handles: list[object]) -> tuple[list[object], float, str]:
        """GPUs that tell how much of their memory is in use, its sum, and what the others say."""
        living, memory_mb, reasons = [], 0.0, []
        for index, handle in enumerate(handles):
            try:
                memory_mb += self._nvml.nvmlDeviceGetMemoryInfo(handle).used / _MEBIBYTE
                living.append(handle)
            except self._nvml.NVMLError as error:
                reasons.append(f"NVML, GPU {index}: {error}")
        return living, memory_mb, "; ".join(reasons)

    def _sum(
        self, handles: list[object], query: Callable[[object], float]
    ) -> tuple[float | None, str]:
        """Over the GPUs, or the reason why one of them doesn't tell (MIG, old boards)."""
        try:
            return sum(query(handle) for handle in handles), ""
        except self._nvml.NVMLError as error:
            return None, f"NVML: {error}"
