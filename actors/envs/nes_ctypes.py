"""The emulator library inside nes-py 8.2.1, driven by ctypes; the package is never imported.

Its Python half needs the old gym and breaks beside numpy 2, the C++ half is sound. The library
keeps one saved state per emulator object and can't hand it out.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.envs.emulator import RAM_BYTES, SCREEN_HEIGHT, SCREEN_WIDTH, SnapshotId

_OBJECT_CALLS = ("Reset", "Step", "Backup", "Restore", "Close")
_POINTER_CALLS = ("Screen", "Memory")


@cache
def _load_library(folder: Path) -> ctypes.CDLL:
    """Open the shared library; the types are declared because the default cuts pointers to int."""
    found = sorted(folder.glob("lib_nes_env*"))
    if not found:
        raise RuntimeError(
            f"no lib_nes_env* in {folder}: nes-py was installed without its compiled library; "
            "reinstall it with `pip install --no-deps --force-reinstall nes-py==8.2.1`"
        )
    library = ctypes.CDLL(str(found[0]))
    library.Initialize.argtypes = [ctypes.c_wchar_p]
    library.Initialize.restype = ctypes.c_void_p
    library.Controller.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.Controller.restype = ctypes.c_void_p
    for name in _OBJECT_CALLS:
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = None
    for name in _POINTER_CALLS:
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_void_p
    return library


def _view(address: int, n_bytes: int) -> NDArray[np.uint8]:
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), dtype=np.uint8)


class LibraryNes:
    """An `Emulator` with one snapshot slot: a save replaces the one before."""

    def __init__(self, rom: Path, folder: Path) -> None:
        if not str(rom).isascii():  # the library narrows each character to one byte
            raise ValueError(
                f"env.rom {str(rom)!r}: this emulator needs a path of ASCII characters"
            )
        self._library = _load_library(folder)
        self._handle: int | None = self._library.Initialize(str(rom))
        screen = _view(self._library.Screen(self._handle), SCREEN_HEIGHT * SCREEN_WIDTH * 4)
        self.screen: NDArray[np.uint32] = screen.view("<u4").reshape(SCREEN_HEIGHT, SCREEN_WIDTH)
        self.ram = _view(self._library.Memory(self._handle), RAM_BYTES)
        self._pad = _view(self._library.Controller(self._handle, 0), 1)
        self._snapshot: SnapshotId = -1
        self._library.Reset(self._handle)

    def step(self, buttons: int) -> None:
        self._pad[0] = buttons
        self._library.Step(self._handle)

    def save(self) -> SnapshotId:
        self._library.Backup(self._handle)
        self._snapshot += 1
        return self._snapshot

    def holds(self, snapshot: SnapshotId) -> bool:
        return 0 <= snapshot == self._snapshot

    def load(self, snapshot: SnapshotId) -> None:
        if not self.holds(snapshot):
            raise ValueError(
                f"snapshot {snapshot} is gone: this emulator keeps one, now {self._snapshot}"
            )
        self._library.Restore(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            self._library.Close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
