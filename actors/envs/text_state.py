"""The state of a text game as one line: what is here now at one end, the past at the other.

Whoever reads it may have to cut it: the world model cuts the end, the language model's prompt the
beginning.
"""

from __future__ import annotations

import re
import string
from collections import deque
from dataclasses import dataclass, field

LONGEST_TEXT = 16_384  # characters
CHARSET = frozenset(string.printable)
_STATUS_LINE = re.compile(r"^>.*-=.*=-.*$", re.MULTILINE)
_ROOM = re.compile(r"-= (.*?) =-")
_OTHERS = re.compile(r"[^\x20-\x7e]")
_AFTERWARDS = re.compile(r"Would you like to RESTART.*", re.DOTALL)
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u2014\u2013", "''\"\"--")


def clean(text: str | None) -> str:
    """One line without the interpreter's status line, blank runs and frames around room names."""
    kept = _AFTERWARDS.sub("", _STATUS_LINE.sub("", text or ""))
    line = " ".join(_ROOM.sub(r"\1.", kept).translate(_QUOTES).split())
    return _OTHERS.sub("?", line)


@dataclass(slots=True)
class Transcript:
    """Commands of one episode with the game's replies, newest last, `length` and the newest."""

    length: int
    _entries: deque[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self._entries = deque(maxlen=self.length + 1)

    def clear(self) -> None:
        self._entries.clear()

    def add(self, command: str, reply: str | None) -> None:
        self._entries.append((command, clean(reply)))

    def describe(
        self,
        description: str | None,
        inventory: str | None,
        goal: str | None,
        *,
        newest_first: bool = True,
    ) -> str:
        """The state after the newest command; a reply that only repeats the place is left out."""
        place = clean(description)
        parts = [place, clean(inventory)]
        entries = [
            f"{command}: {reply}" if reply and reply != place else command
            for command, reply in reversed(self._entries)
        ]
        if entries:
            parts.append(f"Last: {entries[0]}")
        parts.append(f"Goal: {clean(goal)}" if clean(goal) else "")
        parts += [f"Before: {entry}" for entry in entries[1:]]
        told = [part for part in parts if part]
        if newest_first:
            return " ".join(told)[:LONGEST_TEXT]
        return " ".join(reversed(told))[-LONGEST_TEXT:]
