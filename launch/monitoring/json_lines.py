"""JSON-lines files: one object a line, one writer, readable at any moment by others.

Appending is one unbuffered write, so a reader sees whole lines except for at most the last one.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path

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
    logged once and counted; later appends try again, so a run outlives a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_lost = 0  # records that could not be written
        self._descriptor: int | None = None
        self._has_warned = False

    def append(self, record: Mapping[str, object]) -> bool:
        """Writes one line; False if it could not be written."""
        data = (json.dumps(to_json_value(record), allow_nan=False) + "\n").encode()
        try:
            self._write(data)
        except OSError as error:
            self._lose(error)
            return False
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, data: bytes) -> None:
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

    def _lose(self, error: OSError) -> None:
        self.n_lost += 1
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "[monitor] cannot write %s (%s); the run goes on without it", self.path, error
            )


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
    """Follows a JSON-lines file that another process appends to.

    Lines that are not JSON objects are skipped and counted; an unfinished last line waits for the
    next `read_new`. A file that got shorter (a new run in the same folder) is read from its start.
    """

    def __init__(self, path: Path, *, start: int = 0) -> None:
        """start: byte to begin at; the rest of a line that it falls into is skipped and counted"""
        self.path = path
        self.n_skipped = 0
        self._offset = start

    def read_new(self) -> list[dict[str, JsonValue]]:
        """Records appended since the last call; empty if the file is not there."""
        try:
            with self.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < self._offset:
                    self._offset = 0
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        records = []
        for line in whole.splitlines():
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append(record)
            else:
                self.n_skipped += 1
        return records
