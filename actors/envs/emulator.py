"""What the environments need of a NES emulator, and the choice between its two backends.

One object plays one game; a new object is a power-on. Objects belong to one thread, can't be
pickled and are created where they are used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SCREEN_HEIGHT, SCREEN_WIDTH = 240, 256
RAM_BYTES = 0x800

BUTTON_RIGHT, BUTTON_LEFT, BUTTON_DOWN, BUTTON_UP = 0x80, 0x40, 0x20, 0x10
BUTTON_START, BUTTON_SELECT, BUTTON_B, BUTTON_A = 0x08, 0x04, 0x02, 0x01

SnapshotId = int


class Emulator(Protocol):
    """A running NES.

    screen: [240, 256] uint32, each 0x00RRGGBB, a view of the emulator's own picture.
    ram:    [2048] uint8, a writable view of the console's memory.
    """

    screen: NDArray[np.uint32]
    ram: NDArray[np.uint8]

    def step(self, buttons: int) -> None:
        """Emulate one frame with this button byte held."""

    def save(self) -> SnapshotId:
        """Keep the whole state; how many are kept at once depends on the backend."""

    def holds(self, snapshot: SnapshotId) -> bool:
        """Whether `load(snapshot)` is possible."""

    def load(self, snapshot: SnapshotId) -> None:
        """Return to a kept state; raises ValueError if it is no longer kept."""

    def close(self) -> None:
        """Free the emulator; its views must not be read afterwards."""


def open_emulator(rom: Path) -> Emulator:
    """Power on an emulator with a ROM that `actors.envs.rom` has checked.

    Takes the native module of nes-py 9 where it is installed, else the library inside nes-py 8.2.1.
    Raises ValueError if neither is there.
    """
    folder = nes_py_folder()
    if native := sorted(folder.glob("_native*.so")):
        from actors.envs.nes_native import NativeNes

        return NativeNes(rom, native[0])
    from actors.envs.nes_ctypes import LibraryNes

    return LibraryNes(rom, folder)


def nes_py_folder() -> Path:
    """Folder of the installed nes-py; found without executing it (8.2.1 imports the old gym).

    Raises ValueError if it is not installed.
    """
    spec = importlib.util.find_spec("nes_py")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "env.id WarpZone/Mario-v0 needs a NES emulator and none is installed; install it with "
            "`pip install --no-deps nes-py==8.2.1`, or choose another game such as CartPole-v1"
        )
    return Path(spec.submodule_search_locations[0])
