"""One shard of prioritized replay: segments in, training batches out, priorities and targets back.

Runs in one process without Ray and is not thread-safe; `ReplayActor` puts it behind an actor.
Cost of `sample` is the copy of the observations; of `add`, one memory copy per segment. On a GPU
neither `sample` nor `update_priorities` waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from replay_service import snapshot
from replay_service.config import ReplayConfig, check_capacity
from replay_service.live_segments import LiveSegments
from replay_service.placement import choose_device, upload
from replay_service.reanalysis import ReanalysisRequest, TargetPatch, apply_patch, make_request
from replay_service.segment import GameSpec, Segment
from replay_service.staleness import Aged, Staleness
from replay_service.statistics import replay_stats
from replay_service.storage import SegmentRing
from replay_service.tally import SampledRows, SampleTally, StageTimer
from replay_service.targets import Batch, Handles, TargetConfig, TextBatch, WindowBuilder
from replay_service.text_sampler import TextSampler
from replay_service.torch_sampler import make_sampler


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of the segments of one `add`; positions are the trainable ones."""

    n_positions: int
    n_duplicates: int
    n_rejected: int
    n_evicted_positions: int
    reasons: tuple[str, ...] = ()  # one per rejected segment


class BatchSource(Protocol):
    """Where a learner gets its batches and sends their priorities."""

    def next(self) -> Batch: ...

    def update_priorities(self, handles: Handles, priorities: NDArray[np.floating]) -> None: ...


class Replay:
    """Segments, their priorities and the sampling state of one shard; called by one thread."""

    def __init__(
        self,
        config: ReplayConfig,
        targets: TargetConfig,
        spec: GameSpec,
        seed: int,
        *,
        shard: int = 0,
    ) -> None:
        check_capacity(config, targets, spec, batch_size=1)
        self.config = config
        self.targets = targets
        self.spec = spec
        self.shard = shard
        self.device, self.device_reason = choose_device(config)
        n_rows = config.n_rows(spec)
        self.ring = SegmentRing(
            spec,
            n_rows,
            max_characters=int(config.text_mb * 1e6),
            scalars=config.scalars,
            device=self.device,
        )
        self.sampler = make_sampler(config, n_rows, self.device)
        self.rng, text_rng = (
            np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)
        )
        self.text_sampler = TextSampler(self.ring, text_rng)
        self.counters = snapshot.Counters()
        self.segments = LiveSegments()
        self.staleness = Staleness(config.max_weight_lag)
        self.tally = SampleTally(self.device)
        self.timer = StageTimer(self.device)
        self._builder = WindowBuilder(targets, spec.frame_stack, self.device)

    @property
    def n_positions(self) -> int:
        """Positions that may start a sample now."""
        return self.counters.n_positions

    def add(self, segments: Sequence[Segment]) -> AddReport:
        """Store segments; the oldest make room. ValueError for one that could never fit.

        Duplicates are recognised by segment id: all live ids are known, and per (actor,
        incarnation) the highest sequence evicted so far; at or below it a segment counts as a
        duplicate too. Malformed segments and wrong checksums are rejected and counted.
        """
        for segment in segments:
            self.ring.refuse_if_too_large(segment)
        n_added = n_duplicates = n_evicted = 0
        reasons = []
        for segment in segments:
            if self.segments.is_known(segment.header.segment_id):
                n_duplicates += 1
                continue
            reason = self.ring.reason_to_reject(segment)
            if reason is not None:
                reasons.append(reason)
                continue
            if self.staleness.is_too_old(segment.header.weight_version_max):
                self.counters.n_dropped_too_old += 1
                continue
            while self.ring.room_for(segment) is not None:
                n_evicted += self._evict_oldest()
            self._store(segment)
            n_added += segment.n_trainable
            self._mask_too_old()
        self.counters.n_pushed += n_added
        self.counters.n_duplicates += n_duplicates
        self.counters.n_rejected += len(reasons)
        return AddReport(n_added, n_duplicates, len(reasons), n_evicted, tuple(reasons))

    def sample(self, batch_size: int, newest_version: int | None = None) -> Batch:
        """Draw start positions in proportion to priority^alpha and build their windows.

        newest_version: of the weights, where the caller knows it; lags are counted from it, or
        else from the newest version that played any segment.
        """
        self._check_draw(batch_size)
        if newest_version is not None:
            self.staleness.note(newest_version)
            self._mask_too_old()
        columns, builder, timer = self.ring.columns, self._builder, self.timer
        timer.start()
        beta = self.config.beta(self.counters.n_samples)
        slots, importance = self.sampler.draw(batch_size, self.n_positions, beta, self.rng)
        rows = upload(slots, self.device)
        generation = columns.generation.index_select(0, rows)
        handles = Handles(
            self.shard, slots, generation if isinstance(slots, Tensor) else generation.numpy()
        )
        timer.mark("draw")
        windows = builder.locate(columns, rows)
        obs = builder.gather(columns, windows)
        timer.mark("gather")
        shape = (batch_size, self.targets.context_steps - 1)
        batch = builder.build(
            columns,
            windows,
            obs,
            upload(self.rng.integers(self.spec.n_actions, size=shape), self.device),
            importance=upload(importance, self.device),
            handles=handles,
        )
        self.tally.count(
            SampledRows(rows, batch.weight_version, batch.target_version, self.staleness.newest)
        )
        self.counters.n_samples += 1
        timer.mark("targets")
        return batch

    def sample_text(self, batch_size: int) -> TextBatch | None:
        """Draw uniformly from the trainable steps with a prompt; None while there are none."""
        return self.text_sampler.sample(batch_size)

    def update_priorities(self, handles: Handles, priorities: NDArray[np.floating] | Tensor) -> int:
        """Set priorities; outdated handles and invalid numbers are counted and skipped.

        Returns how many were applied; with the torch engine, which does not wait to learn that,
        how many were handed in.
        """
        handles.check(self.shard, self.ring.n_rows)
        if handles.slot.shape != priorities.shape:
            raise ValueError(
                f"priorities has shape {tuple(priorities.shape)}, the handles "
                f"{tuple(handles.slot.shape)}; expected the same [B]"
            )
        if not len(handles):
            return 0
        return self.sampler.write_back(handles, priorities, self.ring.generation)

    def patch(self, patches: Sequence[TargetPatch]) -> int:
        """Replace targets by newer ones; returns how many positions were.

        Counted and skipped: slots re-used since the segment was handed out, slots whose targets
        are as new already, and invalid numbers. ValueError for a patch that belongs elsewhere,
        before any is applied.
        """
        for patch in patches:
            patch.check(self.shard, self.ring.n_rows, self.spec.n_actions)
        n_applied = 0
        for patch in patches:
            report = apply_patch(self.ring, patch)
            n_applied += report.n_applied
            self.counters.n_patch_stale += report.n_stale
            self.counters.n_patch_invalid += report.n_invalid
        self.counters.n_patched += n_applied
        return n_applied

    def least_refreshed(self, n_segments: int) -> list[ReanalysisRequest]:
        """The live segments whose targets were refreshed longest ago, to be searched again.

        They count as refreshed from now on, so that the next call returns others.
        """
        if n_segments < 1:
            raise ValueError(f"n_segments must be at least 1, got {n_segments}")
        taken = self.segments.least_refreshed(n_segments)
        return [make_request(self.ring, stored, self.shard) for stored in taken]

    def stats(self) -> dict[str, float]:
        """Metrics by name; waits for the device."""
        self.settle()
        return replay_stats(self)

    def settle(self) -> None:
        """Bring the counters up to date with what the device counted; waits for it."""
        counters = self.counters
        counters.n_stale = self.sampler.n_stale
        counters.newest_version = self.staleness.newest
        last, total = self.tally.take_unique()
        counters.unique_ratio_sum += total
        if total > 0.0:
            counters.last_unique_ratio = last

    def save(self, folder: Path) -> None:
        """Write replay.npz and replay.json into `folder`; nothing else is touched."""
        snapshot.save(self, folder)

    def load(self, folder: Path) -> None:
        """Continue exactly where `save` was called; ValueError names a file that does not fit."""
        snapshot.load(self, folder)

    def _check_draw(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.n_positions < 1:
            raise ValueError(
                "replay holds no trainable position to sample from; add segments first"
            )

    def _store(self, segment: Segment) -> None:
        stored = self.ring.append(segment)
        self.sampler.insert(stored.start, segment.priority[: segment.n_trainable])
        self.text_sampler.insert(stored)
        self.segments.insert(stored)
        self.counters.n_positions += stored.n_trainable
        self.staleness.note(segment.header.weight_version_max)
        self.staleness.insert(Aged(segment.header.weight_version_min, stored.segment_id))

    def _mask_too_old(self) -> None:
        """Stop sampling segments played with weights that are too old, oldest weights first.

        `min_positions` stay: without samples there is no learning and no newer version either.
        """
        while (oldest := self.staleness.oldest_too_old()) is not None:
            stored = self.segments.get(oldest.segment_id)
            if stored is not None:
                n_trainable = stored.n_trainable
                if self.n_positions - n_trainable < self.config.min_positions:
                    return
                self.sampler.remove(stored.trainable.start, stored.trainable.stop)
                self.segments.mask(stored)
                self.counters.n_positions -= n_trainable
                self.counters.n_masked_too_old += n_trainable
            self.staleness.forget_oldest()

    def _evict_oldest(self) -> int:
        """Returns how many positions less may start a sample."""
        stored = self.ring.evict_oldest()
        self.sampler.remove(stored.trainable.start, stored.trainable.stop)
        self.text_sampler.remove(stored)
        n_lost = self.segments.evict(stored)
        self.counters.n_positions -= n_lost
        return n_lost


class LocalBatchSource:
    """BatchSource over a Replay of the same process."""

    def __init__(self, replay: Replay, batch_size: int) -> None:
        self._replay = replay
        self._batch_size = batch_size

    def next(self) -> Batch:
        return self._replay.sample(self._batch_size)

    def update_priorities(self, handles: Handles, priorities: NDArray[np.floating]) -> None:
        self._replay.update_priorities(handles, priorities)


class LocalReanalysisSource:
    """ReanalysisSource over the shards of the same process; shard i is the i-th of `shards`."""

    def __init__(self, shards: Sequence[Replay]) -> None:
        self._shards = list(shards)
        self._turn = 0

    @property
    def n_shards(self) -> int:
        return len(self._shards)

    def next(self, n_segments: int) -> list[ReanalysisRequest]:
        shard = self._shards[self._turn]
        self._turn = (self._turn + 1) % len(self._shards)
        return shard.least_refreshed(n_segments)

    def patch(self, patches: Sequence[TargetPatch]) -> int:
        return sum(self._shards[patch.handles.shard].patch([patch]) for patch in patches)
