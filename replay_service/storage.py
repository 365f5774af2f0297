"""Ring storage of segments, bounded in bytes: a row per step, whole segments evicted, oldest first.

Memory is reserved at construction and touched only as it fills. A segment lies in consecutive
rows, so adding is one memory copy per column; the end of the ring may stay unused for up to one
segment. Every row has a generation that grows when its segment is evicted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service.segment import GameSpec, Segment
from replay_service.targets import (
    ENDING_OPEN,
    ENDING_TERMINATED,
    ENDING_TRUNCATED,
    Columns,
)
from replay_service.text_pool import NO_TEXT, Text, TextPool

SegmentId = tuple[int, int, int]

_TREE_BYTES = 9  # 8 per leaf and the inner nodes' 8/15


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """Where a live segment lies: n_rows rows from start on, of which n_trainable are drawable."""

    segment_id: SegmentId
    start: int
    n_rows: int
    n_trainable: int
    has_text: bool


def column_layout(spec: GameSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of one row of every column; `legal` exists once a segment brings it."""
    return {
        "obs": (spec.obs_dtype, spec.obs_shape),
        "action": ("int16", ()),
        "reward": ("float32", ()),
        "policy": ("float16", (spec.n_actions,)),
        "root_value": ("float16", ()),
        "end": ("int64", ()),
        "ending": ("int8", ()),
        "weight_version": ("int64", ()),
        "generation": ("int64", ()),
        "prompt": ("int32", ()),
        "options": ("int32", ()),
        "legal": ("bool", (spec.n_actions,)),
    }


def bytes_per_row(spec: GameSpec) -> int:
    """Ring memory per step: the columns, the priority, and the leaves of both sum trees."""
    layout = column_layout(spec).values()
    n_bytes = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in layout)
    return n_bytes + np.dtype(np.float32).itemsize + 2 * _TREE_BYTES


class SegmentRing:
    """Owned by one Replay, which tells the sampler what came and went; not thread-safe."""

    def __init__(self, spec: GameSpec, n_rows: int, max_characters: int) -> None:
        self.spec = spec
        self.n_rows = n_rows
        self.max_characters = max_characters
        self.live: deque[StoredSegment] = deque()
        self.n_rows_used = 0
        self.head = 0  # row where the next segment goes if it fits before the end
        self.high_row = 0  # rows from here on were never written
        self.prompts: TextPool[str] = TextPool()
        self.options: TextPool[tuple[str, ...]] = TextPool()
        self.arrays: dict[str, NDArray[np.generic]] = {}
        for name in column_layout(spec):
            if name != "legal":
                self.allocate(name)

    def allocate(self, name: str) -> None:
        """Reserve one column; generations start at 0, the rest is written before it is read."""
        dtype, shape = column_layout(self.spec)[name]
        make = np.zeros if name == "generation" else np.empty
        self.arrays[name] = make((self.n_rows, *shape), dtype=dtype)
        self._columns: Columns | None = None

    @property
    def columns(self) -> Columns:
        """The columns as tensors that share the ring's memory."""
        if self._columns is None:
            tensors = {
                name: torch.from_numpy(self.arrays[name])
                for name in Columns.__dataclass_fields__
                if name in self.arrays
            }
            self._columns = Columns(legal=tensors.pop("legal", None), **tensors)
        return self._columns

    @property
    def generation(self) -> NDArray[np.int64]:
        return self.arrays["generation"].view(np.int64)

    @property
    def n_characters(self) -> int:
        return self.prompts.n_characters + self.options.n_characters

    def refuse_if_too_large(self, segment: Segment) -> None:
        """ValueError for a segment that could not be held even by an empty ring."""
        if segment.n_frames > self.n_rows:
            raise ValueError(
                f"segment {segment.header.segment_id} needs {segment.n_frames} rows, the replay "
                f"holds {self.n_rows}; raise replay.capacity_mb or use shorter segments"
            )
        if segment.n_characters > self.max_characters:
            raise ValueError(
                f"segment {segment.header.segment_id} brings {segment.n_characters} characters "
                f"of text, the replay holds {self.max_characters}; raise replay.text_mb"
            )

    def room_for(self, segment: Segment) -> StoredSegment | None:
        """The live segment to evict next so that `segment` fits, or None when it does fit now."""
        if not self.live:
            self.head = 0
            return None
        oldest = self.live[0]
        if self.head + segment.n_frames > self.n_rows:
            if oldest.start >= self.head:  # left from the lap before, at the end of the ring
                return oldest
            self.head = 0
        overlaps = (
            oldest.start < self.head + segment.n_frames and self.head < oldest.start + oldest.n_rows
        )
        if overlaps or self.n_characters + segment.n_characters > self.max_characters:
            return oldest
        return None

    def evict_oldest(self) -> StoredSegment:
        """Drop the oldest segment and outdate the handles of its rows."""
        stored = self.live.popleft()
        rows = slice(stored.start, stored.start + stored.n_rows)
        self.generation[rows] += 1
        self.n_rows_used -= stored.n_rows
        if stored.has_text:
            for pool, name in ((self.prompts, "prompt"), (self.options, "options")):
                ids = self.arrays[name][rows]
                pool.release(ids[ids != NO_TEXT].tolist())
        return stored

    def append(self, segment: Segment) -> StoredSegment:
        """Copy a segment in at `head`; `room_for` must have returned None for it."""
        n_steps, n_rows = len(segment), segment.n_frames
        rows = slice(self.head, self.head + n_rows)
        assert rows.stop <= self.n_rows, (self.head, n_rows, self.n_rows)
        if segment.legal is not None and "legal" not in self.arrays:
            self.allocate("legal")
            self.arrays["legal"][: self.high_row] = True
        self.arrays["obs"][rows] = segment.obs
        for name in ("action", "reward", "policy", "root_value"):
            column = self.arrays[name][rows]
            column[:n_steps] = getattr(segment, name)
            column[n_steps:] = 0
        if "legal" in self.arrays:
            legal = self.arrays["legal"][rows]
            legal[:n_steps] = True if segment.legal is None else segment.legal
            legal[n_steps:] = True
        self.arrays["end"][rows] = self.head + n_steps
        self.arrays["ending"][rows] = _ending_of(segment)
        self.arrays["weight_version"][rows] = segment.header.weight_version_min
        self._append_text(segment, rows)
        stored = StoredSegment(
            segment_id=segment.header.segment_id,
            start=self.head,
            n_rows=n_rows,
            n_trainable=segment.n_trainable,
            has_text=segment.prompt is not None,
        )
        self.live.append(stored)
        self.n_rows_used += n_rows
        self.head = rows.stop
        self.high_row = max(self.high_row, rows.stop)
        return stored

    def _append_text(self, segment: Segment, rows: slice) -> None:
        """Text of the trainable steps only: the overlap's comes again with the next segment."""
        for name in ("prompt", "options"):
            self.arrays[name][rows] = NO_TEXT
        if segment.prompt is None:
            return
        prompts = segment.prompt[: segment.n_trainable]
        held = slice(rows.start, rows.start + len(prompts))
        self.arrays["prompt"][held] = [
            self.prompts.acquire(prompt) if prompt else NO_TEXT for prompt in prompts
        ]
        if segment.options is not None:
            self.arrays["options"][held] = [
                self.options.acquire(options) if prompt else NO_TEXT
                for prompt, options in zip(prompts, segment.options, strict=False)
            ]

    def restore_text(self, prompts: dict[int, str], options: dict[int, tuple[str, ...]]) -> None:
        """Intern the texts that the rows of live segments refer to by the given ids."""
        for stored in self.live:
            if stored.has_text:
                rows = slice(stored.start, stored.start + stored.n_rows)
                _intern(self.arrays["prompt"][rows], prompts, self.prompts)
                _intern(self.arrays["options"][rows], options, self.options)


def _intern(ids: NDArray[np.generic], texts: dict[int, Text], pool: TextPool[Text]) -> None:
    """Replace the ids of a saved pool by ids of this one, taking one reference each."""
    for row, text_id in enumerate(ids.tolist()):
        if text_id != NO_TEXT:
            ids[row] = pool.acquire(texts[text_id])


def _ending_of(segment: Segment) -> int:
    if segment.is_terminated:
        return ENDING_TERMINATED
    return ENDING_TRUNCATED if segment.is_truncated else ENDING_OPEN
