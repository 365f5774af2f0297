"""A game in a terminal: pictures as coloured half blocks, opinions as bars, keys one at a time."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import textwrap
import time
import tty
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from actors.episodes import Moment
from launch.playing.overlay import opinions, shown_actions

HOME, CLEAR, PLAIN = "\x1b[H", "\x1b[J", "\x1b[0m"
END_OF_LINE = "\x1b[K"  # clears what the last frame left there
BAR_CELLS = 14
_ARROWS = {"[A": "up", "[B": "down", "[C": "right", "[D": "left"}
_ESCAPE_S = 0.05  # the rest of an arrow's bytes comes within this


def picture_lines(picture: NDArray[np.uint8], columns: int, rows: int) -> list[str]:
    """A picture [H, W, 3] in at most `rows` lines of `columns` cells, two pixels a cell."""
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    size = (max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    lines = []
    for upper, lower in zip(small[0::2], small[1::2], strict=True):
        cells = [
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m\u2580"
            for a, b in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + PLAIN)
    return lines


def opinion_lines(moment: Moment, columns: int) -> list[str]:
    """A head and a line for each action that is shown; the played one is marked."""
    asked = opinions(moment)
    label_width = max(12, columns - len(asked) * (BAR_CELLS + 6) - 3)
    value = "" if moment.value is None else f", value {moment.value:.2f}"
    stage = f"stage {moment.level}, " if moment.level else ""
    head = f"{stage}step {moment.length}, return {moment.total_reward:.1f}{value}"
    names = "".join(f" {name:<{BAR_CELLS + 5}}" for name, _ in asked)
    lines = [head, " " * (label_width + 2) + names]
    for action in shown_actions(moment):
        label = textwrap.shorten(moment.options[action], label_width, placeholder="..")
        bars = "".join(f" {_bar(float(shares[action]))}" for _, shares in asked)
        mark = ">" if action == moment.action else " "
        lines.append(f"{mark} {label:<{label_width}}{bars}")
    return lines


def _bar(share: float) -> str:
    length = round(share * BAR_CELLS)
    return "\u2588" * length + "\u00b7" * (BAR_CELLS - length) + f" {share:.2f}"


class Screen:
    """Shows one moment after another in place, no faster than `fps`."""

    def __init__(self, fps: float) -> None:
        """fps: 0 as fast as may be."""
        self._period_s = 1.0 / fps if fps else 0.0
        self._due = 0.0
        sys.stdout.write(HOME + CLEAR)

    def show(self, moment: Moment, *below: str) -> None:
        size = shutil.get_terminal_size()
        lower = [*opinion_lines(moment, size.columns), *below]
        if moment.picture is not None:
            room = max(4, size.lines - len(lower) - 1)
            upper = picture_lines(moment.picture, size.columns, room)
        else:
            upper = textwrap.wrap(moment.prompt or "", size.columns)
        text = "".join(f"{line}{END_OF_LINE}\r\n" for line in [*upper, *lower])
        wait_s = self._due - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        self._due = time.monotonic() + self._period_s
        sys.stdout.write(HOME + text + CLEAR)
        sys.stdout.flush()


class Keys:
    """Keys as they are pressed, without Enter; the terminal is as before afterwards."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: of a terminal; Ctrl-C still interrupts."""
        self._descriptor = descriptor
        self._before: list[object] | None = None

    def __enter__(self) -> Keys:
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error):  # it is gone
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def read(self, timeout_s: float | None) -> str | None:
        """A character, or up, down, left, right, space; None if nothing was pressed in time.

        timeout_s: None waits for ever. Raises EOFError when the terminal is gone.
        """
        if not self._waits(timeout_s):
            return None
        pressed = self._byte()
        if pressed == "\x1b" and self._waits(_ESCAPE_S):
            rest = self._byte()
            if rest in "[O" and self._waits(_ESCAPE_S):
                return _ARROWS.get("[" + self._byte(), pressed)
        return "space" if pressed == " " else pressed

    def _waits(self, timeout_s: float | None) -> bool:
        return bool(select.select([self._descriptor], [], [], timeout_s)[0])

    def _byte(self) -> str:
        try:
            data = os.read(self._descriptor, 1)
        except OSError as error:  # what a closed pseudo-terminal answers
            raise EOFError from error
        if not data:
            raise EOFError
        return data.decode("latin-1")
