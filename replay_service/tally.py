"""What sampled batches were like: distinct positions, age, refreshed targets, time by stage.

Sums stay on the device that samples; the host waits for them only when it asks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from replay_service.placement import upload

N_RECENT = 4_096  # sampled positions that the percentiles of the lag look at
N_BUCKETS = 16  # lags up to 1, 2, 4, ... 2^14, and beyond
MAX_PENDING = 32  # batches; one by one, counting took a sixth of the time of small samples


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Of one batch: slots [B] int64, ascending; versions [B] that played and searched them."""

    slots: Tensor
    played: Tensor
    searched: Tensor
    newest: int  # version of weights that lags are counted from


class SampleTally:
    """Owned by one Replay, told of each batch; batches are counted some at a time."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._recent = torch.zeros(N_RECENT, dtype=torch.int64, device=device)
        self._n_recent = self._cursor = 0
        self._buckets = torch.zeros(N_BUCKETS, dtype=torch.int64, device=device)
        self._bounds = 1 << torch.arange(N_BUCKETS - 1, device=device)
        self._unique_last = torch.zeros((), dtype=torch.float64, device=device)
        self._unique_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._reanalysed = torch.zeros((), device=device)
        self._pending: list[SampledRows] = []

    def count(self, batch: SampledRows) -> None:
        """Note a batch; its tensors must not change any more."""
        self._pending.append(batch)
        if len(self._pending) == MAX_PENDING:
            self._settle()

    def _settle(self) -> None:
        """Count the pending batches, those of one size at once, the newest one's size last."""
        by_size: dict[int, list[SampledRows]] = {}
        for batch in self._pending:
            size = len(batch.slots)
            by_size[size] = [*by_size.pop(size, ()), batch]
        self._pending = []
        for batches in by_size.values():
            self._count(batches)

    def _count(self, pending: list[SampledRows]) -> None:
        """Count N batches of B positions each."""
        slots, played, searched = (
            torch.stack([getattr(batch, name) for batch in pending])  # [N, B]
            for name in ("slots", "played", "searched")
        )
        unique = 1.0 - (slots[:, 1:] == slots[:, :-1]).double().sum(1) / slots.shape[1]
        self._unique_last = unique[-1]
        self._unique_sum += unique.sum()
        self._reanalysed = (searched[-1] > played[-1]).float().mean()
        newest = upload(np.array([[batch.newest] for batch in pending]), self._device)
        lags = (newest - played).clamp_(min=0).view(-1)
        bucket = torch.bucketize(lags, self._bounds)
        self._buckets.scatter_add_(0, bucket, torch.ones_like(bucket))
        lags = lags[:: -(-len(lags) // N_RECENT)]
        if self._cursor + len(lags) > N_RECENT:
            self._cursor = 0
        stop = self._cursor + len(lags)
        self._recent[self._cursor : stop] = lags
        self._cursor, self._n_recent = stop, max(self._n_recent, stop)

    def take_unique(self) -> tuple[float, float]:
        """Share of the newest batch, and the sum of the shares since the last call."""
        self._settle()
        last, total = torch.stack((self._unique_last, self._unique_sum)).tolist()
        self._unique_sum.zero_()
        return last, total

    def stats(self) -> dict[str, float]:
        """Lags of recent samples, and how many since the last call fell into each bucket.

        `replay_lag_upto_<n>` counts lags in (n / 2, n]; the first one those of 0 and 1 too.
        """
        self._settle()
        recent = self._recent[: max(self._n_recent, 1)].cpu().numpy()
        p50, p90, p99 = np.percentile(recent, (50, 90, 99))
        stats = {
            "replay_reanalysed_share": float(self._reanalysed),
            "replay_lag_p50": float(p50),
            "replay_lag_p90": float(p90),
            "replay_lag_p99": float(p99),
            "replay_lag_max": float(recent.max()),
        }
        *counts, beyond = self._buckets.tolist()
        for power, count in enumerate(counts):
            stats[f"replay_lag_upto_{1 << power}"] = float(count)
        stats["replay_lag_beyond"] = float(beyond)
        self._buckets.zero_()
        return stats


class StageTimer:
    """Time between marks of the newest pass; on a GPU, the device's own time."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        self._marks = [("", self._now())]

    def mark(self, stage: str) -> None:
        """The work since the mark before was `stage`."""
        self._marks.append((stage, self._now()))

    def read_ms(self) -> dict[str, float]:
        """Milliseconds by stage; waits for the device."""
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        return {stage: _between_ms(before, now) for (_, before), (stage, now) in pairs}

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between_ms(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
    if isinstance(before, float) and isinstance(now, float):
        return 1e3 * (now - before)
    assert isinstance(before, torch.cuda.Event) and isinstance(now, torch.cuda.Event)
    now.synchronize()
    return float(before.elapsed_time(now))
