"""JSON-lines files: one object a line, one writer, readable at any moment by others.

Appending is one unbuffered write, so a reader sees whole lines except for at most the last one.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from launch.monitoring.rotation import (
    DAMAGED,
    Rotation,
    open_part,
    part_numbers,
    put_aside,
    tidy,
)

Scalar = str | int | float | bool | None
JsonValue = Scalar | list["JsonValue"] | dict[str, "JsonValue"]

_log = logging.getLogger(__name__)
_TAIL_BYTES = 1 << 16


def to_json_value(value: object) -> JsonValue:
    """`value` as plain JSON data; NaN and infinities become null, numpy numbers Python's.

    Raises TypeError for what has no JSON form.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if hasattr(value, "item"):  # numpy.bool_, zero-dimensional arrays
        return to_json_value(value.item())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def parse_json(data: bytes) -> JsonValue:
    """What `data` holds, with null for numbers that JSON has no form for (NaN, 1e999).

    Raises ValueError for anything that is not JSON.
    """
    try:
        return to_json_value(json.loads(data))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class JsonLinesFile:
    """Appends records to one file; the only writer of it.

    An existing file is continued; a last line cut off by a crash is removed first. A write error is
    logged once and counted; later appends try again, so a run outlives a full disk. With a
    `rotation` it is put aside, compressed, where it grows too large.
    """

    def __init__(self, path: Path, rotation: Rotation | None = None) -> None:
        self.path = path
        self._rotation = rotation
        self._tidying: threading.Thread | None = None
        self.n_lost = 0  # records that could not be written
        self._descriptor: int | None = None
        self._has_warned = False

    def append(self, record: Mapping[str, object]) -> bool:
        """Writes one line; False if it could not be written."""
        data = (json.dumps(to_json_value(record), allow_nan=False) + "\n").encode()
        try:
            size_bytes = self._write(data)
        except OSError as error:
            self._lose(error)
            return False
        if self._rotation is not None and size_bytes >= self._rotation.max_bytes:
            self._rotate(self._rotation)
        return True

    def close(self) -> None:
        self._close_descriptor()
        if self._tidying is not None:
            self._tidying.join()
            self._tidying = None

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rotate(self, rotation: Rotation) -> None:
        """While the last part is still being compressed, the file goes on growing."""
        if self._tidying is not None and self._tidying.is_alive():
            return
        try:
            put_aside(self.path)
        except OSError as error:
            self._warn(f"cannot put aside {self.path} ({error}); it goes on growing")
            return
        self._close_descriptor()
        self._tidying = threading.Thread(
            target=self._tidy, args=(rotation.keep,), name=f"compresses {self.path.name}"
        )
        self._tidying.start()

    def _tidy(self, keep: int) -> None:
        try:
            tidy(self.path, keep)
        except OSError as error:  # tried again with the next part
            self._warn(f"cannot compress parts of {self.path} ({error})")

    def _write(self, data: bytes) -> int:
        """Size of the file afterwards."""
        if self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._descriptor = descriptor
            _drop_partial_line(descriptor)
        size_bytes = os.fstat(self._descriptor).st_size
        try:
            n_written = os.write(self._descriptor, data)
            if n_written != len(data):
                raise OSError(f"wrote {n_written} of {len(data)} bytes")
        except OSError:
            os.ftruncate(self._descriptor, size_bytes)  # no half line stays behind
            raise
        return size_bytes + len(data)

    def _lose(self, error: OSError) -> None:
        self.n_lost += 1
        self._warn(f"cannot write {self.path} ({error}); the run goes on without it")

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning("[monitor] %s", text)


def _drop_partial_line(descriptor: int) -> None:
    """Cuts everything after the last newline."""
    size_bytes = os.fstat(descriptor).st_size
    end = size_bytes
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size_bytes:
        os.ftruncate(descriptor, end)


class JsonLinesReader:
    """Follows a JSON-lines file that another process appends to, from its oldest part on.

    Lines that are not JSON objects are skipped and counted; an unfinished last line waits for the
    next `read_new`. A file that got shorter (a new run in the same folder) is read from its start.
    """

    def __init__(self, path: Path, *, start: int = 0, after_part: int = 0) -> None:
        """start: byte to begin at; the rest of a line that it falls into is skipped and counted
        after_part: number of a part; it and the older ones are left out
        """
        self.path = path
        self.n_skipped = 0
        self._n_parts = after_part  # number of the newest part that was read, 0 before the first
        self._offset = start

    def read_new(self) -> list[dict[str, JsonValue]]:
        """Records appended since the last call; empty if the file is not there."""
        return list(self.iter_new())

    def iter_new(self) -> Iterator[dict[str, JsonValue]]:
        """The same one by one, since the parts of a long run are large."""
        while True:
            for number in part_numbers(self.path):
                if number > self._n_parts:
                    yield from self._iter_part(number)
            try:
                with self.path.open("rb") as stream:
                    if self._is_behind():  # what was opened may be the file after the next
                        continue
                    if os.fstat(stream.fileno()).st_size < self._offset:
                        self._offset = 0
                    yield from self._iter_lines(stream)
            except OSError:
                if self._is_behind():
                    continue
            return

    def _is_behind(self) -> bool:
        """The file was put aside since its parts were read."""
        return any(number > self._n_parts for number in part_numbers(self.path))

    def _iter_part(self, number: int) -> Iterator[dict[str, JsonValue]]:
        """The first part not read yet is what was the file until now, if none was removed."""
        if number != self._n_parts + 1:
            self._n_parts, self._offset = number - 1, 0
        try:
            with open_part(self.path, number) as stream:
                yield from self._iter_lines(stream)
        except DAMAGED:  # or removed meanwhile
            self.n_skipped += 1
        self._n_parts, self._offset = number, 0

    def _iter_lines(self, stream: IO[bytes]) -> Iterator[dict[str, JsonValue]]:
        """From the offset on, which follows; a last line without its end is left for later."""
        stream.seek(self._offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield record
            else:
                self.n_skipped += 1
