"""Frames on disk, in blocks of rows that are written once and shared by later snapshots.

Frames are nearly all of a replay's bytes, and a row's frame stays as it is until its segment is
evicted. So a snapshot writes the blocks that got new rows and takes the others from the snapshot
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
    """The blocks of one ring's frame column [n_rows, *frame]; owned by its Replay.

    writes: per block, how often rows were put into it; part of its file's name
    """

    def __init__(self, frames: Tensor) -> None:
        n_rows = len(frames)
        row_bytes = frames.element_size() * frames.numel() // n_rows
        self._frames = frames
        self._block_rows = min(max(BLOCK_BYTES // row_bytes, 1), n_rows)
        self.writes: NDArray[np.int64] = np.zeros(-(-n_rows // self._block_rows), np.int64)
        # The files this replay wrote or read last: those of others may have the same names.
        self._sealed: dict[str, Stamp] = {}

    def touch(self, rows: slice) -> None:
        """Rows got new frames."""
        last = (rows.stop - 1) // self._block_rows
        self.writes[rows.start // self._block_rows : last + 1] += 1

    def save(self, folder: Path, high_row: int, previous: Path | None) -> None:
        """Put files of rows 0 .. high_row - 1 into `folder`; `previous` is an older snapshot's."""
        names = self._names(self.writes, high_row)
        for block, name in enumerate(names):
            path = folder / name
            if previous is not None and self._is_sealed(previous / name):
                _link(previous / name, path)
                continue
            with path.open("wb") as file:
                write_array(file, self._rows(block, high_row))
                file.flush()
                os.fsync(file.fileno())
        self._sealed = {name: stamp(folder / name) for name in names}

    def load(self, folder: Path, writes: Sequence[int], high_row: int) -> None:
        """Fill the rows; ValueError, before anything is read, for a file that does not fit."""
        if len(writes) != len(self.writes):
            raise ValueError(f"{len(writes)} blocks of frames, expected {len(self.writes)}")
        counts = np.asarray(writes, np.int64)
        names = self._names(counts, high_row)
        for step in (check_array, read_array):
            for block, name in enumerate(names):
                with (folder / name).open("rb") as file:
                    step(file, name, self._rows(block, high_row))
        self.writes[:] = counts
        self._sealed = {name: stamp(folder / name) for name in names}

    def _is_sealed(self, path: Path) -> bool:
        try:
            return self._sealed.get(path.name) == stamp(path)
        except FileNotFoundError:
            return False

    def _names(self, writes: NDArray[np.int64], high_row: int) -> list[str]:
        n_blocks = -(-high_row // self._block_rows)
        return [f"frames-{block:05d}-{writes[block]:09d}.npy" for block in range(n_blocks)]

    def _rows(self, block: int, high_row: int) -> Tensor:
        start = block * self._block_rows
        return self._frames[start : min(start + self._block_rows, high_row)]


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
