"""The newest records of a JSON-lines file, read from its end: the rest may be gigabytes.

A file that was just put aside goes on in its newest part.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from launch.monitoring.json_lines import JsonValue, parse_json
from launch.monitoring.rotation import DAMAGED, MEBIBYTE, open_part, part_numbers

FIRST_LOOK_BYTES = 1 << 16
MOST_TRIES = 5  # of reading a file that is put aside meanwhile

Record = dict[str, JsonValue]
Found = TypeVar("Found")


Source = int | None  # number of a part; None is the file itself


@dataclass(frozen=True, slots=True)
class Tail:
    """Records from the end of a file, the oldest first.

    n_skipped: lines and parts that are no records or can't be read; is_whole: there is no more
    """

    records: list[Record]
    n_skipped: int
    is_whole: bool


def last_record(path: Path) -> tuple[Record, int]:
    """The newest whole record, however long it is, and how many lines after it are none.

    {} if there is none. Older parts are not opened where a newer one, or the file, has a record.
    """
    return _while_it_stays(path, _last_record)


def newest_records(path: Path, most_bytes: int) -> Tail:
    """What the last `most_bytes` of the file and its parts hold."""
    return _while_it_stays(path, lambda path: _newest_records(path, most_bytes))


def _while_it_stays(path: Path, look: Callable[[Path], Found]) -> Found:
    for _ in range(MOST_TRIES):
        newest_part = part_numbers(path)[-1:]
        found = look(path)
        if part_numbers(path)[-1:] == newest_part:  # else the file may be the one after the next
            break
    return found


def _last_record(path: Path) -> tuple[Record, int]:
    n_skipped = 0
    for source in _sources(path):
        wanted = FIRST_LOOK_BYTES
        while True:
            data, is_whole, n_damaged = _end(path, source, wanted)
            n_unread = n_damaged
            for line in reversed(data.splitlines()):
                record = _record(line)
                if record is not None:
                    return record, n_skipped + n_unread
                n_unread += 1
            if is_whole:
                break
            wanted *= 8
        n_skipped += n_unread
    return {}, n_skipped


def _newest_records(path: Path, most_bytes: int) -> Tail:
    data, is_whole, n_skipped = b"", True, 0
    for source in _sources(path):
        if len(data) >= most_bytes or not is_whole:
            is_whole = False
            break
        piece, is_whole, n_damaged = _end(path, source, most_bytes - len(data))
        data, n_skipped = piece + data, n_skipped + n_damaged
    found = [_record(line) for line in data.splitlines()]
    records = [record for record in found if record is not None]
    return Tail(records, n_skipped + len(found) - len(records), is_whole)


def _sources(path: Path) -> tuple[Source, ...]:
    """The newest first."""
    return (None, *reversed(part_numbers(path)))


def _record(line: bytes) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _end(path: Path, source: Source, wanted: int) -> tuple[bytes, bool, int]:
    """Whole lines of the last `wanted` bytes, whether that is everything, and 1 for a damaged part.

    A first line that begins just there is left out with those that were cut.
    """
    try:
        with path.open("rb") if source is None else open_part(path, source) as stream:
            data, is_whole = _last_bytes(stream, wanted)
    except FileNotFoundError:
        return b"", True, 0
    except DAMAGED:
        return b"", True, 1
    start = 0 if is_whole else data.find(b"\n") + 1
    return data[start : data.rfind(b"\n") + 1], is_whole, 0


def _last_bytes(stream: IO[bytes], wanted: int) -> tuple[bytes, bool]:
    """And whether these are all of the stream, which is read from its start if compressed."""
    if not isinstance(stream, gzip.GzipFile):
        size_bytes = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size_bytes - wanted))
        return stream.read(wanted), size_bytes <= wanted
    kept, n_read = b"", 0
    while block := stream.read(MEBIBYTE):
        n_read += len(block)
        kept = (kept + block)[-wanted:]
    return kept, n_read <= wanted
