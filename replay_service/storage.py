"""Ring storage of segments, bounded in bytes: a row per step, whole segments evicted, oldest first.

Memory is reserved at construction and touched only as it fills. A segment lies in consecutive
rows, so adding is one memory copy per column; the end of the ring may stay unused for up to one
segment. Frames lie apart, since segments repeat those of their overlap: a row says which is its
frame (`frame_store.py`). Every row has a generation that grows when its segment is evicted. Columns
lie on the ring's device, the queue of segments and the ids of texts on the host.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from replay_service.frame_store import BOOKKEEPING_BYTES, FrameStore, Incoming
from replay_service.placement import download, reserve, upload
from replay_service.segment import GameSpec, Segment
from replay_service.segment_check import check_segment
from replay_service.targets import (
    ENDING_OPEN,
    ENDING_TERMINATED,
    ENDING_TRUNCATED,
    Columns,
)
from replay_service.text_pool import NO_TEXT, Text, TextPool

SegmentId = tuple[int, int, int]
ScalarType = Literal["float16", "float32"]

HOST_COLUMNS = ("prompt", "options")  # ids of texts, which never leave the host

_TREE_BYTES = 9  # 8 per leaf and the inner nodes' 8/15
_SLOT_BYTES = 4  # of a row: which slot its frame is in, as the host knows it on any device
# Where frames are most of a row, there are more rows than frames, so that segments that share
# frames fill both: with overlaps of 15, segments from 30 steps on.
_LARGE_FRAME = 4.0
_ROWS_PER_LARGE_FRAME = 1.5


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """Where a live segment lies: n_rows rows from start on, of which n_trainable are drawable.

    env_id, tail_digest: which environment played it, and what its successor will begin with; ""
                         at the end of an episode
    """

    segment_id: SegmentId
    start: int
    n_rows: int
    n_trainable: int
    has_text: bool
    env_id: int
    tail_digest: str

    @property
    def env_key(self) -> tuple[int, int, int]:
        """Of the environment, among all that actors ever had."""
        return (*self.segment_id[:2], self.env_id)

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.n_rows)

    @property
    def trainable(self) -> slice:
        return slice(self.start, self.start + self.n_trainable)


def column_layout(
    spec: GameSpec, scalars: ScalarType = "float16", *, advantages: bool = False
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of one row of every column; `legal` exists once a segment brings it."""
    return {
        **({"advantage": (scalars, (spec.n_actions,))} if advantages else {}),
        "frame": ("int32", ()),
        "action": ("int16", ()),
        "reward": ("float32", ()),
        "policy": (scalars, (spec.n_actions,)),
        "root_value": (scalars, ()),
        "end": ("int64", ()),
        "ending": ("int8", ()),
        "weight_version": ("int32", ()),
        "target_version": ("int32", ()),
        "generation": ("int64", ()),
        "prompt": ("int32", ()),
        "options": ("int32", ()),
        "legal": ("bool", (spec.n_actions,)),
    }


def frame_bytes(spec: GameSpec) -> int:
    """Memory of a frame that is held once."""
    n_bytes = np.dtype(spec.obs_dtype).itemsize * int(np.prod(spec.obs_shape))
    return n_bytes + BOOKKEEPING_BYTES


def row_bytes(spec: GameSpec, scalars: ScalarType = "float16", *, advantages: bool = False) -> int:
    """Memory of a step beside its frame: columns, priority, and the leaves of both sum trees."""
    layout = column_layout(spec, scalars, advantages=advantages).values()
    n_bytes = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in layout)
    return n_bytes + np.dtype(np.float32).itemsize + 2 * _TREE_BYTES + _SLOT_BYTES


def rows_per_frame(spec: GameSpec, scalars: ScalarType = "float16") -> float:
    """How many rows a ring has for each frame."""
    is_large = frame_bytes(spec) > _LARGE_FRAME * row_bytes(spec, scalars)
    return _ROWS_PER_LARGE_FRAME if is_large else 1.0


def bytes_per_step(
    spec: GameSpec, scalars: ScalarType = "float16", *, advantages: bool = False
) -> float:
    """Ring memory for each frame that there is room for, with its share of the rows."""
    of_row = row_bytes(spec, scalars, advantages=advantages)
    return frame_bytes(spec) + rows_per_frame(spec, scalars) * of_row


class SegmentRing:
    """Owned by one Replay, which tells the sampler what came and went; not thread-safe."""

    def __init__(
        self,
        spec: GameSpec,
        n_rows: int,
        n_frames: int,
        max_characters: int,
        *,
        scalars: ScalarType = "float16",
        advantages: bool = False,
        device: torch.device | str = "cpu",
        first_generation: int = 0,
    ) -> None:
        self.spec = spec
        self.n_rows = n_rows
        self.max_characters = max_characters
        self.device = torch.device(device)
        self.layout = column_layout(spec, scalars, advantages=advantages)
        self._row_bytes = row_bytes(spec, scalars, advantages=advantages)
        self._frame_bytes = frame_bytes(spec)
        self.frames = FrameStore(spec, n_frames, self.device)
        self.live: deque[StoredSegment] = deque()
        self.n_rows_used = 0
        self.head = 0  # row where the next segment goes if it fits before the end
        self.high_row = 0  # rows from here on were never written
        self.prompts: TextPool[str] = TextPool()
        self.options: TextPool[tuple[str, ...]] = TextPool()
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, NDArray[np.generic]] = {}  # views of the tensors that the host holds
        for name in self.layout:
            if name != "legal":
                self.allocate(name)
        self.generation.add_(first_generation)

    def allocate(self, name: str) -> None:
        """Reserve one column of zeros."""
        dtype, shape = self.layout[name]
        device = torch.device("cpu") if name in HOST_COLUMNS else self.device
        tensor = self.tensors[name] = reserve((self.n_rows, *shape), dtype, device)
        if device.type == "cpu":
            self.arrays[name] = tensor.numpy()
        self._columns: Columns | None = None

    @property
    def columns(self) -> Columns:
        """The columns that batches are built from."""
        if self._columns is None:
            held = self.tensors | {"obs": self.frames.frames}
            legal = held.get("legal")
            names = (name for name in Columns.__dataclass_fields__ if name != "legal")
            self._columns = Columns(legal=legal, **{name: held[name] for name in names})
        return self._columns

    @property
    def generation(self) -> Tensor:
        """[n_rows] int64."""
        return self.tensors["generation"]

    def write(self, name: str, rows: slice, values: ArrayLike) -> None:
        """Set rows of one column; does not wait for the device."""
        if name in self.arrays:
            self.arrays[name][rows] = values
        elif isinstance(values, bool | int | float):
            self.tensors[name][rows].fill_(values)
        else:
            self.tensors[name][rows].copy_(upload(values, self.device), non_blocking=True)

    def read(self, name: str, rows: slice) -> NDArray[np.generic]:
        """A copy of rows of one column for the host; waits for the device."""
        return np.array(download(self.tensors[name][rows]))

    def read_frames(self, stored: StoredSegment) -> NDArray[np.generic]:
        """A copy of a live segment's frames for the host; waits for the device."""
        slots = self.frames.slots_of(stored.segment_id)
        return np.array(download(self.frames.read(slots)))

    @property
    def n_bytes(self) -> int:
        """Memory of what is held; texts are apart."""
        return self.n_rows_used * self._row_bytes + self.frames.n_used * self._frame_bytes

    @property
    def n_characters(self) -> int:
        return self.prompts.n_characters + self.options.n_characters

    def reason_to_reject(self, segment: Segment) -> str | None:
        """What is wrong with a segment that came in, or None; its header has been checked."""
        name = f"segment {segment.header.segment_id}"
        try:
            check_segment(segment, self.spec)
        except ValueError as error:
            return f"{name}: {error}"
        n_held = min(self.n_rows, self.frames.n_slots)
        if segment.n_frames > n_held:
            return (
                f"{name}: obs needs {segment.n_frames} rows, the replay holds {n_held}; raise "
                "replay.capacity_mb or use shorter segments"
            )
        if segment.n_characters > self.max_characters:
            return (
                f"{name}: prompt and options bring {segment.n_characters} characters of text, the "
                f"replay holds {self.max_characters}; raise replay.text_mb"
            )
        scalars, highest = self.layout["root_value"][0], float(np.abs(segment.root_value).max())
        if highest > float(np.finfo(scalars).max):
            return (
                f"{name}: root_value reaches {highest:g}, beyond {scalars}; set replay.scalars to "
                "float32 or scale rewards down"
            )
        return None

    def room_for(self, incoming: Incoming) -> StoredSegment | None:
        """The live segment to evict next so that another fits, or None when it does fit now."""
        segment = incoming.segment
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
        is_short = self.frames.n_needed(incoming) > self.frames.n_free
        if overlaps or is_short or self.n_characters + segment.n_characters > self.max_characters:
            return oldest
        return None

    def evict_oldest(self) -> StoredSegment:
        """Drop the oldest segment and outdate the handles of its rows."""
        stored = self.live.popleft()
        rows = stored.rows
        self.generation[rows].add_(1)
        self.frames.release(stored)
        self.n_rows_used -= stored.n_rows
        if stored.has_text:
            for pool, name in ((self.prompts, "prompt"), (self.options, "options")):
                ids = self.arrays[name][rows]
                pool.release(ids[ids != NO_TEXT].tolist())
        return stored

    def append(self, incoming: Incoming) -> StoredSegment:
        """Copy a segment in at `head`; `room_for` must have returned None for it."""
        segment = incoming.segment
        n_steps, n_rows = len(segment), segment.n_frames
        rows = slice(self.head, self.head + n_rows)
        assert rows.stop <= self.n_rows, (self.head, n_rows, self.n_rows)
        if segment.legal is not None and "legal" not in self.tensors:
            self.allocate("legal")
            self.write("legal", slice(0, self.high_row), True)
        steps, tail = slice(self.head, self.head + n_steps), slice(self.head + n_steps, rows.stop)
        self.write("frame", rows, self.frames.store(incoming))
        for name in ("action", "reward", "policy", "root_value"):
            self.write(name, steps, getattr(segment, name))
            self.write(name, tail, 0)
        if "advantage" in self.tensors:
            self.write("advantage", steps, 0 if segment.advantage is None else segment.advantage)
            self.write("advantage", tail, 0)
        if "legal" in self.tensors:
            self.write("legal", steps, True if segment.legal is None else segment.legal)
            self.write("legal", tail, True)
        self.write("end", rows, steps.stop)
        self.write("ending", rows, _ending_of(segment))
        for name in ("weight_version", "target_version"):
            self.write(name, rows, segment.header.weight_version_min)
        self._append_text(segment, rows)
        stored = StoredSegment(
            segment_id=segment.header.segment_id,
            start=self.head,
            n_rows=n_rows,
            n_trainable=segment.n_trainable,
            has_text=segment.prompt is not None,
            env_id=segment.header.env_id,
            tail_digest=incoming.tail_digest,
        )
        self.frames.insert(stored)
        self.live.append(stored)
        self.n_rows_used += n_rows
        self.head = rows.stop
        self.high_row = max(self.high_row, rows.stop)
        return stored

    def _append_text(self, segment: Segment, rows: slice) -> None:
        """Context steps too, for searching them again: the next segment brings the same texts."""
        for name in ("prompt", "options"):
            self.arrays[name][rows] = NO_TEXT
        if segment.prompt is None:
            return
        held = slice(rows.start, rows.start + len(segment))
        self.arrays["prompt"][held] = [
            self.prompts.acquire(prompt) if prompt else NO_TEXT for prompt in segment.prompt
        ]
        if segment.options is not None:
            self.arrays["options"][held] = [
                self.options.acquire(options) if prompt else NO_TEXT
                for prompt, options in zip(segment.prompt, segment.options, strict=True)
            ]

    def restore_text(self, prompts: dict[int, str], options: dict[int, tuple[str, ...]]) -> None:
        """Intern the texts that the rows of live segments refer to by the given ids."""
        for stored in self.live:
            if stored.has_text:
                _intern(self.arrays["prompt"][stored.rows], prompts, self.prompts)
                _intern(self.arrays["options"][stored.rows], options, self.options)


def _intern(ids: NDArray[np.generic], texts: dict[int, Text], pool: TextPool[Text]) -> None:
    """Replace the ids of a saved pool by ids of this one, taking one reference each."""
    for row, text_id in enumerate(ids.tolist()):
        if text_id != NO_TEXT:
            ids[row] = pool.acquire(texts[text_id])


def _ending_of(segment: Segment) -> int:
    if segment.is_terminated:
        return ENDING_TERMINATED
    return ENDING_TRUNCATED if segment.is_truncated else ENDING_OPEN
