"""The native module of nes-py 9, loaded by itself; keeps any number of snapshots.

The package's Python half is not needed. Snapshots stay in the process that made them.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from actors.envs.emulator import SCREEN_HEIGHT, SCREEN_WIDTH, SnapshotId

_MAX_SNAPSHOTS = 256  # 0.25 MB each; the oldest but the first (the stage's start) goes first


@cache
def _load_module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nes_py._native", file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NativeNes:
    """An `Emulator` over `NativeEmulator`."""

    def __init__(self, rom: Path, library: Path) -> None:
        self._nes = _load_module(library).NativeEmulator(str(rom))
        self.screen = self._pixels()
        self.ram: NDArray[np.uint8] = self._nes.ram_buffer()
        self._snapshots: dict[SnapshotId, object] = {}
        self._n_saved = 0
        self._nes.reset()

    def step(self, buttons: int) -> None:
        self._nes.frame_advance(buttons)

    def save(self) -> SnapshotId:
        snapshot = self._n_saved
        self._snapshots[snapshot] = self._nes.dump_state()
        self._n_saved += 1
        if len(self._snapshots) > _MAX_SNAPSHOTS:
            del self._snapshots[sorted(self._snapshots)[1]]
        return snapshot

    def holds(self, snapshot: SnapshotId) -> bool:
        return snapshot in self._snapshots

    def load(self, snapshot: SnapshotId) -> None:
        if not self.holds(snapshot):
            raise ValueError(f"snapshot {snapshot} is gone: {len(self._snapshots)} are kept")
        self._nes.load_state(self._snapshots[snapshot])

    def close(self) -> None:
        self._snapshots.clear()

    def _pixels(self) -> NDArray[np.uint32]:
        """The module shows red, green, blue bytes; the whole pixels begin two bytes earlier."""
        red = self._nes.screen_buffer()
        address = red.__array_interface__["data"][0] - 2
        pixels = (ctypes.c_uint32 * (SCREEN_HEIGHT * SCREEN_WIDTH)).from_address(address)
        return np.frombuffer(pixels, dtype=np.uint32).reshape(SCREEN_HEIGHT, SCREEN_WIDTH)
