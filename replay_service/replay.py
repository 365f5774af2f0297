"""One shard of prioritized replay: segments in, training batches out, priorities back.

Runs in one process without Ray and is not thread-safe; `ReplayActor` puts it behind an actor.
Cost of `sample` is the copy of the observations; of `add`, one memory copy per segment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service import snapshot
from replay_service.config import ReplayConfig, check_capacity
from replay_service.sampler import PrioritySampler, SumTree
from replay_service.segment import GameSpec, Segment
from replay_service.staleness import Aged, Staleness
from replay_service.storage import SegmentId, SegmentRing, StoredSegment, bytes_per_row
from replay_service.targets import Batch, Handles, TargetConfig, TextBatch, WindowBuilder
from replay_service.text_pool import NO_TEXT

# (actor, incarnation) pairs whose evicted segments are remembered for duplicate detection.
MAX_REMEMBERED_ACTORS = 65_536
# Live positions that the priority percentiles of `stats` look at.
MAX_PERCENTILE_POSITIONS = 16_384


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
        n_rows = config.n_rows(spec)
        check_capacity(config, targets, spec, batch_size=1)
        self.config = config
        self.targets = targets
        self.spec = spec
        self.shard = shard
        self.ring = SegmentRing(spec, n_rows, max_characters=int(config.text_mb * 1e6))
        self.sampler = PrioritySampler(n_rows, alpha=config.exponent, floor=config.priority_floor)
        self.text_tree = SumTree(n_rows)  # weight 1 where a trainable step has a prompt
        self.rng, self.text_rng = (
            np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)
        )
        self.counters = snapshot.Counters()
        # Highest sequence evicted per (actor, incarnation), least recently grown first.
        self.evicted_sequence: dict[tuple[int, int], int] = {}
        self.staleness = Staleness(config.max_weight_lag)
        self._live_ids: set[SegmentId] = set()
        self._builder = WindowBuilder(targets, spec.frame_stack)
        self._sample_seconds = 0.0

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
            if self._is_known(segment.header.segment_id):
                n_duplicates += 1
                continue
            reason = self._reason_to_reject(segment)
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

    def sample(self, batch_size: int) -> Batch:
        """Draw start positions in proportion to priority^alpha and build their windows."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.n_positions < 1:
            raise ValueError(
                "replay holds no trainable position to sample from; add segments first"
            )
        started = time.perf_counter()
        beta = self.config.beta(self.counters.n_samples)
        slots, importance = self.sampler.draw(batch_size, self.n_positions, beta, self.rng)
        filler = self.rng.integers(
            self.spec.n_actions, size=(batch_size, self.targets.context_steps - 1)
        )
        batch = self._builder.build(
            self.ring.columns,
            torch.from_numpy(slots),
            torch.from_numpy(filler),
            importance=torch.from_numpy(importance),
            handles=Handles(self.shard, slots, self.ring.generation[slots]),
        )
        self.staleness.count(batch.weight_version.numpy())
        n_unique = 1 + int(np.count_nonzero(np.diff(slots)))  # draws come in ascending order
        self.counters.count_sample(n_unique / batch_size)
        self._sample_seconds = time.perf_counter() - started
        return batch

    def sample_text(self, batch_size: int) -> TextBatch | None:
        """Draw uniformly from the trainable steps with a prompt; None while there are none."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self.text_tree.total == 0.0:
            return None
        slots = self.text_tree.draw(batch_size, self.text_rng)
        prompt_ids = self.ring.arrays["prompt"][slots].tolist()
        option_ids = self.ring.arrays["options"][slots].tolist()
        return TextBatch(
            prompt=tuple(self.ring.prompts[text_id] for text_id in prompt_ids),
            options=tuple(
                () if text_id == NO_TEXT else self.ring.options[text_id] for text_id in option_ids
            ),
            policy=self.ring.columns.policy.index_select(0, torch.from_numpy(slots)).float(),
        )

    def update_priorities(self, handles: Handles, priorities: NDArray[np.floating]) -> int:
        """Set priorities; outdated handles and invalid numbers are counted and skipped.

        Returns how many were applied.
        """
        n_handles = len(handles)
        if handles.slot.shape != priorities.shape or handles.generation.shape != priorities.shape:
            raise ValueError(
                f"priorities has shape {priorities.shape}, the handles {handles.slot.shape} and "
                f"{handles.generation.shape}; expected the same [B]"
            )
        if handles.shard != self.shard:
            raise ValueError(f"handles belong to shard {handles.shard}, this is {self.shard}")
        if n_handles and not 0 <= handles.slot.min() <= handles.slot.max() < self.ring.n_rows:
            raise ValueError(f"slot must lie in 0..{self.ring.n_rows - 1}, got {handles.slot}")
        slots = np.array(handles.slot)
        is_current = self.ring.generation[slots] == handles.generation
        is_current &= self.sampler.tree.leaves[slots] > 0.0
        self.counters.n_stale += n_handles - int(np.count_nonzero(is_current))
        with np.errstate(over="ignore"):  # beyond float32 is infinite, hence invalid
            priority = priorities.astype(np.float32)
        return self.sampler.update(slots[is_current], priority[is_current])

    def stats(self) -> dict[str, float]:
        """Metrics by name; percentiles come from at most 16,384 evenly spaced positions."""
        counters = self.counters
        slots = np.flatnonzero(self.sampler.tree.leaves[: self.ring.high_row])
        stride = -(-len(slots) // MAX_PERCENTILE_POSITIONS) or 1
        priority = self.sampler.priority[slots[::stride]]
        if len(priority) == 0:
            priority = np.zeros(1, dtype=np.float32)
        p50, p90, p99 = np.percentile(priority, (50, 90, 99))
        return {
            "replay_fill_rate": self.ring.n_rows_used / self.ring.n_rows,
            "replay_positions": float(self.n_positions),
            "replay_push_total": float(counters.n_pushed),
            "replay_last_unique_ratio": counters.last_unique_ratio,
            "replay_avg_unique_ratio": counters.mean_unique_ratio,
            "replay_priority_mean": float(priority.mean()),
            "replay_priority_p50": float(p50),
            "replay_priority_p90": float(p90),
            "replay_priority_p99": float(p99),
            "replay_beta": self.config.beta(counters.n_samples),
            "replay_sample_ms": 1e3 * self._sample_seconds,
            "replay_sample_total": float(counters.n_samples),
            "replay_stale_total": float(counters.n_stale),
            "replay_duplicate_total": float(counters.n_duplicates),
            "replay_rejected_total": float(counters.n_rejected),
            "replay_invalid_priority_total": float(self.sampler.n_invalid),
            "replay_bytes": float(self.ring.n_rows_used * bytes_per_row(self.spec)),
            "replay_too_old_dropped_total": float(counters.n_dropped_too_old),
            "replay_too_old_masked_total": float(counters.n_masked_too_old),
            **self.staleness.stats(),
        }

    def save(self, folder: Path) -> None:
        """Write replay.npz and replay.json into `folder`; nothing else is touched."""
        snapshot.save(self, folder)

    def load(self, folder: Path) -> None:
        """Continue exactly where `save` was called; ValueError names a file that does not fit."""
        snapshot.load(self, folder)
        self._live_ids = {stored.segment_id for stored in self.ring.live}
        for stored in self.ring.live:
            self._note_version(stored, self.counters.newest_version)

    def _is_known(self, segment_id: SegmentId) -> bool:
        evicted = self.evicted_sequence.get(segment_id[:2], -1)
        return segment_id in self._live_ids or segment_id[2] <= evicted

    def _reason_to_reject(self, segment: Segment) -> str | None:
        try:
            segment.validate(self.spec)
        except ValueError as error:
            return f"segment {segment.header.segment_id}: {error}"
        if not segment.verify():
            return f"segment {segment.header.segment_id}: content does not match its checksum"
        return None

    def _store(self, segment: Segment) -> StoredSegment:
        stored = self.ring.append(segment)
        self.sampler.insert(stored.start, segment.priority[: segment.n_trainable])
        if stored.has_text:
            rows = slice(stored.start, stored.start + stored.n_trainable)
            has_prompt = self.ring.arrays["prompt"][rows] != NO_TEXT
            self.text_tree.set_span(rows.start, rows.stop, has_prompt.astype(np.float64))
        self._live_ids.add(stored.segment_id)
        self.counters.n_positions += stored.n_trainable
        self._note_version(stored, segment.header.weight_version_max)
        return stored

    def _note_version(self, stored: StoredSegment, newest: int) -> None:
        row = stored.start
        version = int(self.ring.arrays["weight_version"][row])
        generation = int(self.ring.generation[row])
        self.staleness.insert(Aged(version, row, generation, stored.n_trainable), newest)
        self.counters.newest_version = self.staleness.newest

    def _mask_too_old(self) -> None:
        """Stop sampling segments played with weights that are too old, oldest weights first.

        `min_positions` stay: without samples there is no learning and no newer version either.
        """
        while (oldest := self.staleness.oldest_too_old()) is not None:
            row, n_trainable = oldest.row, oldest.n_trainable
            if self.ring.generation[row] == oldest.generation and self._is_sampled(row):
                if self.n_positions - n_trainable < self.config.min_positions:
                    return
                self.sampler.remove(row, row + n_trainable)
                self.counters.n_positions -= n_trainable
                self.counters.n_masked_too_old += n_trainable
            self.staleness.forget_oldest()

    def _is_sampled(self, row: int) -> bool:
        """Whether the segment that begins at `row` has not been masked."""
        return bool(self.sampler.tree.leaves[row] > 0.0)

    def _evict_oldest(self) -> int:
        is_sampled = self._is_sampled(self.ring.live[0].start)
        stored = self.ring.evict_oldest()
        self.sampler.remove(stored.start, stored.start + stored.n_trainable)
        if stored.has_text:
            self.text_tree.set_span(stored.start, stored.start + stored.n_trainable, 0.0)
        self._live_ids.remove(stored.segment_id)
        actor, incarnation, sequence = stored.segment_id
        highest = self.evicted_sequence.pop((actor, incarnation), -1)
        self.evicted_sequence[actor, incarnation] = max(highest, sequence)
        if len(self.evicted_sequence) > MAX_REMEMBERED_ACTORS:
            del self.evicted_sequence[next(iter(self.evicted_sequence))]
        n_lost = stored.n_trainable if is_sampled else 0
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
