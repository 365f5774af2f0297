"""One shard of prioritized replay: segments in, training batches out, priorities and targets back.

Runs in one process without Ray and is not thread-safe; `ReplayActor` puts it behind an actor.
Cost of `sample` is the copy of the observations; of `add`, one memory copy per segment. On a GPU
neither `sample` nor `update_priorities` waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from replay_service import snapshot
from replay_service.config import ReplayConfig, check_capacity
from replay_service.frame_store import Incoming
from replay_service.joint import ShareReply, ShareRequest
from replay_service.live_segments import LiveSegments
from replay_service.old_snapshot import OldSegment
from replay_service.placement import choose_device, upload
from replay_service.reanalysis import ReanalysisRequest, TargetPatch, apply_patch, make_request
from replay_service.segment import GameSpec, Segment
from replay_service.segment_check import check_header
from replay_service.staleness import Aged, Staleness
from replay_service.statistics import AddReport, replay_stats
from replay_service.storage import SegmentRing
from replay_service.tally import SampledRows, SampleTally, StageTimer
from replay_service.targets import (
    Batch,
    Handles,
    Indices,
    TargetConfig,
    TextBatch,
    WindowBuilder,
)
from replay_service.text_sampler import TextSampler
from replay_service.torch_sampler import make_sampler


class Replay:
    """Segments, their priorities and the sampling state of one shard; called by one thread.

    config is that of one shard (`ReplayConfig.of_one_shard`). Generations start at
    first_generation: a shard that takes the place of one that died must pass a number that no
    generation before can have reached, so that handles which outlived it fit none of its slots.
    """

    def __init__(
        self,
        config: ReplayConfig,
        targets: TargetConfig,
        spec: GameSpec,
        seed: int,
        *,
        shard: int = 0,
        first_generation: int = 0,
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
            config.n_frames(spec),
            max_characters=int(config.text_mb * 1e6),
            scalars=config.scalars,
            advantages=config.advantages,
            device=self.device,
            first_generation=first_generation,
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
        """Store segments; the oldest make room.

        Duplicates are recognised by segment id: all live ids are known, and per (actor,
        incarnation) the highest sequence evicted so far; at or below it a segment counts as a
        duplicate too. Whatever `check_segment` refuses, or could never fit, is rejected and
        counted, whoever sent it; the others of the call are stored.
        """
        n_added = n_duplicates = n_evicted = n_bytes = 0
        reasons = []
        if not isinstance(segments, list | tuple):
            reasons.append(f"payload is {type(segments).__name__}, expected a list of segments")
            segments = ()
        for segment in segments:
            try:
                check_header(getattr(segment, "header", None))
            except ValueError as error:
                reasons.append(f"segment without a usable header: {error}")
                continue
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
            incoming, n_lost = self._make_room(segment)
            n_evicted += n_lost
            n_bytes -= self.ring.n_bytes
            self._store(incoming)
            n_bytes += self.ring.n_bytes
            n_added += segment.n_trainable
            self._mask_too_old()
        self.counters.n_pushed += n_added
        self.counters.n_duplicates += n_duplicates
        self.counters.n_rejected += len(reasons)
        return AddReport(
            n_added,
            n_duplicates,
            len(reasons),
            n_evicted,
            tuple(reasons),
            n_bytes=n_bytes,
            n_bytes_held=self.ring.n_bytes,
        )

    def take_over(self, old: OldSegment) -> None:
        """Store a segment that a snapshot of an older format held; the oldest make room."""
        incoming, _ = self._make_room(old.segment)
        self._store(incoming)
        stored = self.ring.live[-1]
        steps = slice(stored.start, stored.start + len(old.segment))
        self.ring.write("target_version", steps, old.target_version)

    def note_newest(self, version: int) -> None:
        """Somebody speaks of weights of that version: play that lags too far is not sampled."""
        self.staleness.note(version)
        self._mask_too_old()

    def sample(self, batch_size: int, newest_version: int | None = None) -> Batch:
        """Draw start positions in proportion to priority^alpha and build their windows.

        newest_version: of the weights, where the caller knows it; lags are counted from it, or
        else from the newest version that played any segment.
        """
        self._check_draw(batch_size)
        if newest_version is not None:
            self.note_newest(newest_version)
        self.timer.start()
        beta = self.config.beta(self.counters.n_batches)
        slots, importance = self.sampler.draw(batch_size, self.n_positions, beta, self.rng)
        self.counters.n_batches += 1
        return self._build(slots, importance)

    def sample_share(self, request: ShareRequest) -> ShareReply:
        """Draw the rows of a batch that is made by several shards; see `joint.py`."""
        if request.n_rows < 0:
            raise ValueError(f"n_rows must not be negative, got {request.n_rows}")
        self.note_newest(request.newest_version)
        self.counters.n_batches = max(self.counters.n_batches, request.n_batches)
        mass = self.sampler.total if self.n_positions else 0.0
        batch, probability = None, np.empty(0)
        if request.n_rows and self.n_positions:
            self.timer.start()
            slots, probability = self.sampler.draw_share(request.n_rows, self.rng)
            batch = self._build(slots, np.ones(request.n_rows, dtype=np.float32))
        newest = self.staleness.newest
        return ShareReply(batch, probability, mass, self.counters.n_batches, newest)

    def _build(self, slots: Indices, importance: NDArray[np.float32] | Tensor) -> Batch:
        """The windows that start at `slots`, and all that is counted and timed about them."""
        columns, builder, timer = self.ring.columns, self._builder, self.timer
        rows = upload(slots, self.device)
        generation = columns.generation.index_select(0, rows)
        handles = Handles(
            self.shard, slots, generation if isinstance(slots, Tensor) else generation.numpy()
        )
        timer.mark("draw")
        windows = builder.locate(columns, rows)
        obs = builder.gather(columns, windows)
        timer.mark("gather")
        shape = (len(slots), self.targets.context_steps - 1)
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

    def text_positions(self) -> int:
        """Trainable steps with a prompt, from which `sample_text` draws."""
        return int(self.text_sampler.tree.total)

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

    def save(self, folder: Path, previous: Path | None = None) -> None:
        """Write a snapshot into `folder`; nothing else is touched.

        previous: folder of an older one, whose unchanged frames are linked instead of written
        """
        snapshot.save(self, folder, previous)

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

    def _make_room(self, segment: Segment) -> tuple[Incoming, int]:
        """Evicts until it fits; returns how many positions less may start a sample then."""
        incoming, n_lost = self.ring.frames.recognise(segment), 0
        while self.ring.room_for(incoming) is not None:
            n_lost += self._evict_oldest()
        return incoming, n_lost

    def _store(self, incoming: Incoming) -> None:
        segment = incoming.segment
        stored = self.ring.append(incoming)
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
