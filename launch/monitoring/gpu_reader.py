"""GPU figures through NVML, in this process; never a subprocess, never an exception."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pynvml

_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Figures over all visible GPUs; None with a reason where there is none.

    util_last, util_mean_window: percent, mean over the GPUs.
    mem_used_mb, power_w:        sums over the GPUs.
    """

    util_last: float | None
    util_mean_window: float | None
    mem_used_mb: float | None
    power_w: float | None
    missing_reason: str  # "" while everything could be read


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
        self._last = GpuReading(None, None, None, None, "not read yet")

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
                nvml.nvmlInit()
                count = nvml.nvmlDeviceGetCount()
                self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            if not self._handles:
                return GpuReading(None, None, None, None, "the NVIDIA driver shows no GPU")
            memory = [nvml.nvmlDeviceGetMemoryInfo(h).used / _MEBIBYTE for h in self._handles]
        except nvml.NVMLError as error:
            self._handles = None  # a GPU that was reset is found again by the next nvmlInit
            return GpuReading(None, None, None, None, f"NVML: {error}")
        util, util_reason = self._each(lambda h: float(nvml.nvmlDeviceGetUtilizationRates(h).gpu))
        power, power_reason = self._each(lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1000.0)
        if util is not None:
            util /= len(self._handles)
            self._utils.append(util)
        mean = sum(self._utils) / len(self._utils) if self._utils else None
        reason = "; ".join(filter(None, (util_reason, power_reason)))
        return GpuReading(util, mean, sum(memory), power, reason)

    def _each(self, query: Callable[[object], float]) -> tuple[float | None, str]:
        """Sum over the GPUs, or the reason why one of them doesn't tell (MIG, old boards)."""
        assert self._handles is not None
        try:
            return sum(query(handle) for handle in self._handles), ""
        except self._nvml.NVMLError as error:
            return None, f"NVML: {error}"
