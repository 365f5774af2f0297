"""How a live page asks a run for something, and says that somebody looks: files in a folder.

The page is another process, of another container perhaps, and shares nothing with the run but its
directory. A request is a file that appears whole under its name; the run takes it and leaves an
answer beside it. Any number of pages may ask at once. What is read here is trusted in nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from launch.monitoring.json_lines import parse_json

REQUESTS_FOLDER = "requests"
VIEWER_FILE = "viewer.json"
REQUEST_END, ANSWER_END = ".request", ".answer"
LARGEST_BYTES = 4_096
MOST_AT_ONCE = 16  # of requests, so that a full folder holds nobody up
VIEWER_STAYS_S = 10.0  # after the last sign of it; pages give one every 3 s
ANSWER_STAYS_S = 60.0  # where nobody reads it, since who asked is gone
SETTING, CHECKPOINT = "setting", "checkpoint"  # what can be asked for


@dataclass(frozen=True, slots=True)
class Request:
    """name: of its file; content: as it was read, None if it could not be."""

    name: str
    content: object


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it was done, and in words what or why not."""

    is_done: bool
    text: str


class RequestBox:
    """The run's side; owned by the controller, and never ends a run by failing to read or write."""

    def __init__(self, run_dir: Path, clock: Callable[[], float]) -> None:
        self._folder = run_dir / REQUESTS_FOLDER
        self._clock = clock
        self._viewer_stamp = 0
        self._viewer_at = -inf
        self._viewer: object = None
        self._answered: deque[tuple[float, Path]] = deque()  # when and where, oldest first

    def begin(self) -> None:
        """Requests to an earlier process are not for this one."""
        try:
            self._folder.mkdir(exist_ok=True)
            left_behind = list(os.scandir(self._folder))
        except OSError:
            return
        for entry in left_behind:
            _remove(Path(entry.path))

    def take(self) -> list[Request]:
        """What was asked since the last call, oldest first."""
        while self._answered and self._clock() - self._answered[0][0] > ANSWER_STAYS_S:
            _remove(self._answered.popleft()[1])
        try:
            names = sorted(n for n in os.listdir(self._folder) if n.endswith(REQUEST_END))
        except OSError:
            return []
        taken = (self._take(name) for name in names[:MOST_AT_ONCE])
        return [request for request in taken if request is not None]

    def answer(self, request: Request, answer: Answer) -> None:
        content = json.dumps({"is_done": answer.is_done, "text": answer.text})
        path = self._folder / f"{request.name}{ANSWER_END}"
        try:
            _put(path, content)
        except OSError:
            return  # whoever asked sees at least that it was taken
        self._answered.append((self._clock(), path))

    def viewer(self) -> tuple[int, int] | None:
        """The env actor and the environment that somebody looks at closely; None if nobody looks.

        By changes of the file as this process sees them, since clocks of machines differ.
        """
        path = self._folder / VIEWER_FILE
        try:
            stamp = path.stat().st_mtime_ns
            if stamp != self._viewer_stamp:
                self._viewer_stamp, self._viewer_at = stamp, self._clock()
                self._viewer = _read(path)
        except OSError:
            return None
        if self._clock() - self._viewer_at > VIEWER_STAYS_S:
            return None
        viewer = self._viewer if isinstance(self._viewer, dict) else {}
        return _index(viewer.get("actor")), _index(viewer.get("env"))

    def _take(self, name: str) -> Request | None:
        """None for what can't be taken away, and would be there the next time too."""
        path = self._folder / name
        try:
            content = _read(path)
        except OSError:
            content = None
        if not _remove(path):
            return None
        return Request(name.removesuffix(REQUEST_END), content)


class RequestDesk:
    """The page's side."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / REQUESTS_FOLDER

    def put(self, content: object) -> str:
        """Asks; returns a name for the next two. Raises OSError where that can't be written."""
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        _put(self._folder / f"{name}{REQUEST_END}", json.dumps(content))
        return name

    def answer(self, name: str) -> Answer | None:
        """The answer, once; None while there is none."""
        path = self._folder / f"{name}{ANSWER_END}"
        try:
            content = _read(path)
        except OSError:
            return None
        _remove(path)
        content = content if isinstance(content, dict) else {}
        return Answer(content.get("is_done") is True, str(content.get("text", "")))

    def withdraw(self, name: str) -> bool:
        """Whether the request was still there, and now is not."""
        return _remove(self._folder / f"{name}{REQUEST_END}")

    def look(self, actor: int, env: int) -> None:
        """Somebody looks; to be repeated. Raises OSError."""
        _put(self._folder / VIEWER_FILE, json.dumps({"actor": actor, "env": env}))

    def leave(self) -> None:
        """Nobody looks any more."""
        _remove(self._folder / VIEWER_FILE)


def _put(path: Path, text: str) -> None:
    """Readers see it whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        _remove(temporary)
        raise


def _read(path: Path) -> object:
    """Its JSON; None if it has none or is too large."""
    with path.open("rb") as stream:
        data = stream.read(LARGEST_BYTES + 1)
    try:
        return parse_json(data) if len(data) <= LARGEST_BYTES else None
    except ValueError:
        return None


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _index(value: object) -> int:
    is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_index else 0
