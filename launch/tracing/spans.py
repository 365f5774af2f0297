"""What a process does and when, while a profile is taken: written by the process itself.

The driver writes the window's begin and end to a file; a process that finds it appends its calls
and their stages, one JSON line each, to a file of its own. Outside the window that costs a look at
the file system a call, and nothing at all without `trace.profile`.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from replay_service.stage_times import stage_listener

PROFILE_FOLDER = "profile"
WINDOW_FILE = "window.json"
MOST_SPANS = 200_000  # of one process; a line is some 60 bytes


class SpanFile:
    """The spans of one process, or of one object in a serial run."""

    def __init__(self, folder: Path, name: str) -> None:
        self._window_file = folder / WINDOW_FILE
        self._path = folder / f"{name}.jsonl"
        self._window: tuple[float, float] | None = None
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._n_spans = 0
        # Spans are measured by the clock that never jumps, and written in seconds since 1970.
        self._to_unix = time.time() - time.perf_counter()

    def add(self, name: str, began: float, ended: float) -> None:
        """A span by time.perf_counter; dropped unless a part of it lies in the window."""
        window = self._window or self._find_window()
        if window is None or not self._overlaps(window, began, ended):
            return
        with self._lock:
            if self._n_spans >= MOST_SPANS:
                return
            if not self._n_spans:
                self._lines.append(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            self._n_spans += 1
            span = [name, began + self._to_unix, ended - began, threading.get_native_id()]
            self._lines.append(json.dumps(span))

    def flush(self) -> None:
        """Writes what there is; a disk that does not take it costs the spans, not the call."""
        with self._lock:
            lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            with self._path.open("a") as file:
                file.write("\n".join(lines) + "\n")
        except OSError:
            self._n_spans = MOST_SPANS

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A span for what happens inside, and for the stages that it tells of."""
        token = stage_listener.set(self.add)
        began = time.perf_counter()
        try:
            yield
        finally:
            stage_listener.reset(token)
            self.add(name, began, time.perf_counter())
            self.flush()

    def _overlaps(self, window: tuple[float, float], began: float, ended: float) -> bool:
        return began + self._to_unix < window[1] and ended + self._to_unix > window[0]

    def _find_window(self) -> tuple[float, float] | None:
        try:
            window = json.loads(self._window_file.read_bytes())
        except (OSError, ValueError):
            return None
        self._window = (window["begin"], window["end"])
        return self._window


def profiled(factory: type, name: str, folder: Path) -> type:
    """`factory` with a span for every public method; the child is called `name`."""
    members = inspect.getmembers(factory, inspect.isfunction)
    methods = {n: _with_span(n, method) for n, method in members if not n.startswith("_")}

    def start(self: object, *args: object, **kwargs: object) -> None:
        self._spans = SpanFile(folder, name)
        factory.__init__(self, *args, **kwargs)

    return type(factory.__name__, (factory,), {"__init__": start, **methods})


def _with_span(name: str, method: Callable[..., object]) -> Callable[..., object]:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def call_async(self, *args, **kwargs):
            with self._spans.call(name):
                return await method(self, *args, **kwargs)

        return call_async

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with self._spans.call(name):
            return method(self, *args, **kwargs)

    return call


@dataclass(frozen=True, slots=True)
class Span:
    """began: seconds since 1970"""

    name: str
    began: float
    seconds: float
    thread: int

    @property
    def ended(self) -> float:
        return self.began + self.seconds


def chrome_trace(folder: Path) -> Mapping[str, object]:
    """What all processes wrote below `folder`, as chrome://tracing and Perfetto load it.

    Lines that a killed process left half written are passed over.
    """
    events: list[dict[str, object]] = []
    origin = json.loads((folder / WINDOW_FILE).read_bytes())["begin"]
    for process, path in enumerate(sorted(folder.glob("*.jsonl")), start=1):
        title, spans = _read_spans(path)
        named = {"name": "process_name", "ph": "M", "pid": process, "args": {"name": title}}
        events.append(named)
        events += [
            {
                "name": span.name,
                "ph": "X",
                "ts": (span.began - origin) * 1e6,
                "dur": span.seconds * 1e6,
                "pid": process,  # not the real one: objects of a serial run share a process
                "tid": row,
            }
            for row, span in in_rows(spans)
        ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def in_rows(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Each span with a row; in a row spans follow each other or lie one inside the other.

    Calls that an async process serves side by side do neither, and viewers show them wrongly.
    """
    rows: list[tuple[int, list[float]]] = []  # thread, ends of the spans that are open
    placed = []
    for span in sorted(spans, key=lambda span: (span.began, -span.seconds)):
        row = _row_with_room(rows, span)
        rows[row][1].append(span.ended)
        placed.append((row, span))
    return placed


def _row_with_room(rows: list[tuple[int, list[float]]], span: Span) -> int:
    """The first row of its thread that can take `span`; a new one if none can."""
    for row, (thread, open_ends) in enumerate(rows):
        while open_ends and open_ends[-1] <= span.began:
            open_ends.pop()
        if thread == span.thread and (not open_ends or span.ended <= open_ends[-1]):
            return row
    rows.append((span.thread, []))
    return len(rows) - 1


def _read_spans(path: Path) -> tuple[str, list[Span]]:
    """Title and spans of one process."""
    title, spans = path.stem, []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            row = json.loads(line)
            if isinstance(row, list):
                spans.append(Span(str(row[0]), float(row[1]), float(row[2]), int(row[3])))
            else:
                title = f"{path.stem} (process {row['pid']} on {row['host']})"
    return title, spans
