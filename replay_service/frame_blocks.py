"""Frames on disk, in blocks of slots that are written once and shared by later snapshots.

Frames are nearly all of a replay's bytes, and a slot's frame stays as it is until its segments are
evicted. So a snapshot writes the blocks that got new frames and takes the others from the snapshot
before it, as hard links: each folder is whole, and a block's bytes are gone from the disk with the
last folder that has it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from replay_service.array_file import check_array, read_array, write_array

BLOCK_BYTES = 4 << 20

Stamp = tuple[int, int, int, int]  # what tells one file from another: device, inode, size, mtime


class FrameBlocks:
    """The blocks of a store's frames [n_slots, *frame]; owned by that store.

    writes: per block, how often frames were put into it; part of its file's name
    """

    def __init__(self, frames: Tensor) -> None:
        n_slots = len(frames)
        frame_bytes = frames.element_size() * frames.numel() // n_slots
        self._frames = frames
        self._block_slots = min(max(BLOCK_BYTES // frame_bytes, 1), n_slots)
        self.writes: NDArray[np.int64] = np.zeros(-(-n_slots // self._block_slots), np.int64)
        # The files this replay wrote or read last: those of others may have the same names.
        self._sealed: dict[str, Stamp] = {}

    def touch(self, slots: NDArray[np.integer]) -> None:
        """Slots got new frames."""
        self.writes[np.unique(slots // self._block_slots)] += 1

    def save(self, folder: Path, high_slot: int, previous: Path | None) -> None:
        """Put the slots below high_slot into `folder`; `previous` is an older snapshot's."""
        names = self._names(self.writes, high_slot)
        for block, name in enumerate(names):
            path = folder / name
            if previous is not None and self._is_sealed(previous / name):
                _link(previous / name, path)
                continue
            with path.open("wb") as file:
                write_array(file, self._slots(block, high_slot))
                file.flush()
                os.fsync(file.fileno())
        self._sealed = {name: stamp(folder / name) for name in names}

    def load(self, folder: Path, writes: Sequence[int], high_slot: int) -> None:
        """Fill the slots; ValueError, before anything is read, for a file that does not fit."""
        if len(writes) != len(self.writes):
            raise ValueError(f"{len(writes)} blocks of frames, expected {len(self.writes)}")
        counts = np.asarray(writes, np.int64)
        names = self._names(counts, high_slot)
        for step in (check_array, read_array):
            for block, name in enumerate(names):
                with (folder / name).open("rb") as file:
                    step(file, name, self._slots(block, high_slot))
        self.writes[:] = counts
        self._sealed = {name: stamp(folder / name) for name in names}

    def _is_sealed(self, path: Path) -> bool:
        try:
            return self._sealed.get(path.name) == stamp(path)
        except FileNotFoundError:
            return False

    def _names(self, writes: NDArray[np.int64], high_slot: int) -> list[str]:
        n_blocks = -(-high_slot // self._block_slots)
        return [f"frames-{block:05d}-{writes[block]:09d}.npy" for block in range(n_blocks)]

    def _slots(self, block: int, high_slot: int) -> Tensor:
        start = block * self._block_slots
        return self._frames[start : min(start + self._block_slots, high_slot)]


def stamp(path: Path) -> Stamp:
    """Equal for a file and its hard links, and no other file that was there meanwhile."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
