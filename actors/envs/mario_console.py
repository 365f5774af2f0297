"""One emulator that plays one stage: its first playable frame, frame skip and saved points."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.envs.emulator import (
    BUTTON_START,
    Emulator,
    SnapshotId,
    open_emulator,
)
from actors.envs.mario_ram import is_over, read_time
from actors.envs.rom import Rom

_WORLDS_WITH_INTRO = (1, 2, 4, 7)  # their stages from 2 on count one area more: a walk into a pipe
_MAX_START_FRAMES = 2_000  # the known ROM needs about 220
_PRE_LEVEL_TIMER = 0x7A0


@dataclass(frozen=True, slots=True)
class ConsoleState:
    """A point of a game: the buttons that lead to it, and where it can be loaded without replay."""

    stage: str
    frames: bytes  # the button byte of each frame since the stage's first playable one
    holder: str  # identity of the running emulator that has the snapshot
    snapshot: SnapshotId


class MarioConsole:
    """A power-on and the start of `stage` happen in the constructor (0.4 s); restarts are cheap."""

    def __init__(self, rom: Rom, stage: str) -> None:
        self.stage = stage
        self._rom = rom
        self._frames = bytearray()
        self._power_on()

    @property
    def ram(self) -> NDArray[np.uint8]:
        return self._emulator.ram

    @property
    def screen(self) -> NDArray[np.uint32]:
        """The newest picture [240, 256], a view."""
        return self._emulator.screen

    def restart(self) -> None:
        """Go to the stage's first playable frame."""
        if self._emulator.holds(self._start):
            self._emulator.load(self._start)
            self._frames.clear()
            np.copyto(self.previous_screen, self.screen)
        else:  # a saved point took the emulator's only slot
            self._emulator.close()
            self._power_on()

    def run(self, buttons: int, n_frames: int) -> None:
        """Hold the buttons for n_frames, fewer if the episode ends."""
        emulator = self._emulator
        for frame in range(n_frames):
            if frame == n_frames - 1:
                np.copyto(self.previous_screen, emulator.screen)
            emulator.step(buttons)
            self._frames.append(buttons)
            if is_over(emulator.ram.tobytes()):
                np.copyto(self.previous_screen, emulator.screen)
                return

    def save(self) -> ConsoleState:
        return ConsoleState(self.stage, bytes(self._frames), self._identity, self._emulator.save())

    def load(self, saved: ConsoleState) -> None:
        if saved.holder == self._identity and self._emulator.holds(saved.snapshot):
            self._emulator.load(saved.snapshot)
            self._frames = bytearray(saved.frames)
        else:
            self.restart()
            for buttons in saved.frames:
                self._emulator.step(buttons)
            self._frames.extend(saved.frames)
        np.copyto(self.previous_screen, self.screen)

    def close(self) -> None:
        self._emulator.close()

    def _power_on(self) -> None:
        self._emulator: Emulator = open_emulator(self._rom.path)
        self._identity = uuid.uuid4().hex  # differs between processes too
        self.previous_screen = np.zeros_like(self._emulator.screen)
        self._frames.clear()
        self._skip_to_stage()
        self._start = self._emulator.save()
        np.copyto(self.previous_screen, self.screen)

    def _skip_to_stage(self) -> None:
        """Press START through the title, writing the stage where the game reads it."""
        press_and_release = (BUTTON_START, 0)
        n_frames = 0

        def tap() -> None:
            nonlocal n_frames
            for buttons in press_and_release:
                self._emulator.step(buttons)
                if buttons:
                    self._write_stage()
            n_frames += len(press_and_release)
            if n_frames > _MAX_START_FRAMES:
                raise ValueError(
                    f"env.rom {str(self._rom.path)!r}: stage {self.stage} did not start within "
                    f"{_MAX_START_FRAMES} frames; give a Super Mario Bros ROM with --env.rom PATH"
                )

        tap()
        while self._time() == 0:
            tap()
            self._emulator.ram[_PRE_LEVEL_TIMER] = 0
        last = self._time()
        while self._time() >= last:  # the black screen with the lives, until the clock ticks
            last = self._time()
            tap()

    def _time(self) -> int:
        return read_time(self._emulator.ram.tobytes())

    def _write_stage(self) -> None:
        world, stage = (int(part) for part in self.stage.split("-"))
        area = stage + (stage >= 2 and world in _WORLDS_WITH_INTRO)
        ram = self._emulator.ram
        ram[0x75F], ram[0x75C], ram[0x760] = world - 1, stage - 1, area - 1
