"""The frames of live segments, each held once, though segments repeat them.

Successive segments of an episode repeat the frames of their overlap, and the first stack of an
episode repeats one frame. A segment therefore refers to slots, which two segments may share: what
comes in is compared with the end of the segment before it, of the same environment. Slots that
nobody refers to any more are used again in the order in which they came free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay_service.frame_blocks import FrameBlocks
from replay_service.placement import reserve, upload
from replay_service.segment import GameSpec, Segment

if TYPE_CHECKING:
    from replay_service.storage import SegmentId, StoredSegment

Slots: TypeAlias = "NDArray[np.int32]"

BOOKKEEPING_BYTES = 6  # a slot's place in the queue of free ones, and how many refer to it


@dataclass(frozen=True, slots=True)
class Incoming:
    """A segment on its way in.

    previous:    the live segment that it continues, if its frames begin as that one's end
    n_shared:    its first frames, which `previous` holds already
    n_repeated:  its first frames that equal the one after them, when there is no `previous`
    tail_digest: of the frames that its successor will repeat; "" at the end of an episode
    """

    segment: Segment
    previous: SegmentId | None
    n_shared: int
    n_repeated: int
    tail_digest: str


class FrameStore:
    """Slots for single frames; owned by one SegmentRing, not thread-safe.

    frames:    [n_slots, *obs_shape] on the ring's device
    blocks:    the same on disk
    high_slot: slots from here on were never written
    """

    def __init__(self, spec: GameSpec, n_slots: int, device: torch.device) -> None:
        self.n_slots = n_slots
        self.frames = reserve((n_slots, *spec.obs_shape), spec.obs_dtype, device)
        self.blocks = FrameBlocks(self.frames)
        self.high_slot = 0
        self._stack = spec.frame_stack
        self._array = self.frames.numpy() if device.type == "cpu" else None
        self._n_owners = np.zeros(n_slots, np.int16)
        self._free = np.arange(n_slots, dtype=np.int32)  # a ring: n_free slots from _first on
        self._first = 0
        self.n_free = n_slots
        self._held: dict[SegmentId, Slots] = {}
        self._newest: dict[tuple[int, int, int], StoredSegment] = {}  # of each environment

    @property
    def n_used(self) -> int:
        return self.n_slots - self.n_free

    @property
    def freed_slots(self) -> Slots:
        """Those that held frames before, the next to be used first.

        Slots that were never used come before them, in order.
        """
        return self._next(self.n_free)[self.n_slots - self.high_slot :]

    def slots_of(self, segment_id: SegmentId) -> Slots:
        """Where the frames of a live segment lie, [n_frames]."""
        return self._held[segment_id]

    def recognise(self, segment: Segment) -> Incoming:
        """Find out which of a segment's frames are here already."""
        is_open = not (segment.is_terminated or segment.is_truncated)
        digest = _digest(segment.obs[segment.n_trainable :]) if is_open else ""
        header = segment.header
        previous = self._newest.get((header.actor, header.incarnation, header.env_id))
        if previous is not None:
            n_shared = previous.n_rows - previous.n_trainable
            head = segment.obs[:n_shared]
            if n_shared < segment.n_frames and _digest(head) == previous.tail_digest:
                return Incoming(segment, previous.segment_id, n_shared, 0, digest)
        n_repeated = self._stack - 1
        if n_repeated and (segment.obs[:n_repeated] != segment.obs[n_repeated]).any():
            n_repeated = 0
        return Incoming(segment, None, 0, n_repeated, digest)

    def n_needed(self, incoming: Incoming) -> int:
        """Free slots that it would take now."""
        return incoming.segment.n_frames - self._n_known(incoming)

    def store(self, incoming: Incoming) -> Slots:
        """Copy in the frames that are new; returns the slots of all, [n_frames]."""
        segment, n_known = incoming.segment, self._n_known(incoming)
        new = self._take(segment.n_frames - n_known)
        self._write(new, segment.obs[n_known:])
        known = np.full(n_known, new[0], np.int32)
        if incoming.previous in self._held:
            previous = self._held[incoming.previous]
            known = previous[len(previous) - n_known :]
        slots = np.concatenate((known, new))
        np.add.at(self._n_owners, slots, 1)
        self._held[segment.header.segment_id] = slots
        return slots

    def insert(self, stored: StoredSegment) -> None:
        """The segment whose frames were stored last is live from now on."""
        if stored.tail_digest:
            self._newest[stored.env_key] = stored
        else:
            self._newest.pop(stored.env_key, None)

    def release(self, stored: StoredSegment) -> None:
        """A segment leaves; slots that no other refers to are free again."""
        slots = self._held.pop(stored.segment_id)
        np.subtract.at(self._n_owners, slots, 1)
        free = np.unique(slots[self._n_owners[slots] == 0])
        self._free[(self._first + self.n_free + np.arange(len(free))) % self.n_slots] = free
        self.n_free += len(free)
        if self._newest.get(stored.env_key) is stored:
            del self._newest[stored.env_key]

    def read(self, slots: Slots) -> Tensor:
        """A copy of these frames, on the ring's device."""
        return self.frames.index_select(0, upload(slots, self.frames.device))

    def restore(
        self, live: Sequence[StoredSegment], slots: Sequence[Slots], freed: Slots, high_slot: int
    ) -> None:
        """Take over what a snapshot had, `slots` for each of `live`.

        ValueError, and nothing is changed, unless every slot is either used or once in `freed`.
        """
        used = np.concatenate((*slots, np.empty(0, np.int32)))
        for name, values in (("frame", used), ("freed_slots", freed)):
            if len(values) and not 0 <= values.min() <= values.max() < high_slot:
                raise ValueError(f"{name} must lie in 0..{high_slot - 1}")
        free = np.concatenate((np.arange(high_slot, self.n_slots, dtype=np.int32), freed))
        n_owners = np.zeros(self.n_slots, np.int64)
        np.add.at(n_owners, used, 1)
        n_free = np.bincount(free, minlength=self.n_slots)
        if (n_free != (n_owners == 0)).any():
            raise ValueError("every slot of a frame must be either used or once in freed_slots")
        self._n_owners[:] = n_owners
        self._free[: len(free)] = free
        self._first, self.n_free, self.high_slot = 0, len(free), high_slot
        for stored, slots_of_one in zip(live, slots, strict=True):
            self._held[stored.segment_id] = slots_of_one
            self.insert(stored)

    def _n_known(self, incoming: Incoming) -> int:
        """Its first frames that need no slot; `previous` may have been evicted meanwhile."""
        if incoming.previous is None:
            return incoming.n_repeated
        return incoming.n_shared if incoming.previous in self._held else 0

    def _take(self, n_slots: int) -> Slots:
        assert n_slots <= self.n_free, (n_slots, self.n_free)
        taken = self._next(n_slots)
        self._first = (self._first + n_slots) % self.n_slots
        self.n_free -= n_slots
        self.high_slot = max(self.high_slot, int(taken.max()) + 1)
        return taken

    def _next(self, n_slots: int) -> Slots:
        free: Slots = self._free.take(self._first + np.arange(n_slots), mode="wrap")
        return free

    def _write(self, slots: Slots, frames: NDArray[np.generic]) -> None:
        self.blocks.touch(slots)
        if self._array is not None:
            self._array[slots] = frames
            return
        device = self.frames.device
        self.frames.index_copy_(0, upload(slots, device).long(), upload(frames, device))


def _digest(frames: NDArray[np.generic]) -> str:
    content = np.ascontiguousarray(frames).reshape(-1).view(np.uint8).data
    return hashlib.sha256(content).hexdigest()
