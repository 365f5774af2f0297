"""The lines of a metrics or events file and of its older parts, so many as a report has use for.

All of a file and its parts is read up to MOST_BYTES, beyond that only some of its parts; of what is
read, few lines are kept and parsed. Memory does not grow with the length of a run.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import statistics
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from launch.monitoring.json_lines import JsonValue, parse_json
from launch.monitoring.rotation import DAMAGED, open_part, part_numbers

MOST_BYTES = 256 << 20  # uncompressed, of a file and its parts; of more, parts evenly chosen
MOST_OF_ONE_FILE = 64 << 20  # that was never put aside; of a larger one its end is read
MOST_LINES = 4_000  # kept of metrics: a chart has 300 points
MOST_OF_A_KIND = 20_000  # events kept of each kind, the newest ones
MOST_KINDS = 200
_READ_BYTES = 1 << 20
# As launch/monitoring/metrics_writer.py begins a line; others are parsed to know their kind.
_KIND = re.compile(rb'\{"timestamp": [^,"]+, "event": "(\w+)"')

Record = dict[str, JsonValue]


class History:
    """One file and its older parts. Not raised for: whatever they hold, or that they vanish.

    n_skipped: lines that are no records, of those that were parsed, and parts that are damaged
    is_whole: false if parts, or the beginning of a large file, were left out
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.n_skipped = 0
        self.is_whole = True

    def thinned(self) -> list[Record]:
        """Every n-th line, the newest among them; n is 1 for up to MOST_LINES."""
        kept: list[bytes] = []
        stride = 1
        newest = b""
        for index, line in enumerate(self._lines()):
            newest = line
            if index % stride:
                continue
            kept.append(line)
            if len(kept) > MOST_LINES:
                kept, stride = kept[::2], 2 * stride
        if kept and kept[-1] is not newest:
            kept.append(newest)
        return self._records(kept)

    def events(self) -> tuple[list[Record], Counter[str]]:
        """The newest of each kind, in the order of the file, and how many of each were read."""
        counts: Counter[str] = Counter()
        kept: dict[str, deque[tuple[int, bytes]]] = {}
        for index, line in enumerate(self._lines()):
            kind = _kind_of(line)
            counts[kind] += 1
            if kind not in kept and len(kept) >= MOST_KINDS:
                kind = "others"
            kept.setdefault(kind, deque(maxlen=MOST_OF_A_KIND)).append((index, line))
        in_order = sorted(pair for pairs in kept.values() for pair in pairs)
        counts.pop("", None)  # those that are no events
        return self._records([line for _, line in in_order]), counts

    def _records(self, lines: list[bytes]) -> list[Record]:
        parsed = [_parsed(line) for line in lines]
        records = [record for record in parsed if record is not None]
        self.n_skipped += len(parsed) - len(records)
        return records

    def _lines(self) -> Iterator[bytes]:
        """Whole lines, the oldest first."""
        parts, current = self._opened()
        chosen = self._chosen(parts)
        self.is_whole = chosen == parts
        for number in chosen:
            yield from self._lines_of_part(number)
        if current is None:
            return
        with current as stream, suppress(OSError):
            excess = 0 if parts else os.fstat(stream.fileno()).st_size - MOST_OF_ONE_FILE
            if excess > 0:
                self.is_whole = False
                stream.seek(excess)
                stream.readline()  # the rest of a line
            yield from _whole_lines(stream)

    def _opened(self) -> tuple[list[int], IO[bytes] | None]:
        """The parts that are there, and the file that follows them, which a run may put aside at
        any moment.
        """
        while True:
            parts = part_numbers(self._path)
            try:
                stream = self._path.open("rb")
            except OSError:
                return parts, None
            if part_numbers(self._path)[-1:] == parts[-1:]:
                return parts, stream
            stream.close()

    def _lines_of_part(self, number: int) -> Iterator[bytes]:
        try:
            with open_part(self._path, number) as stream:
                yield from _whole_lines(_buffered(stream))
        except FileNotFoundError:  # too old by now
            self.is_whole = False
        except DAMAGED:
            self.n_skipped += 1

    def _chosen(self, parts: list[int]) -> list[int]:
        """All, or so many from the oldest to the newest as hold MOST_BYTES together."""
        if not parts:
            return []
        # Parts are alike; a damaged one may claim to be of any size.
        typical_bytes = int(statistics.median(self._size_bytes(number) for number in parts))
        step = max(1, -(-len(parts) * typical_bytes // MOST_BYTES))
        return parts[:-1][::step] + parts[-1:]

    def _size_bytes(self, number: int) -> int:
        """Uncompressed; 0 of a part that is gone. A compressed file ends with its size."""
        try:
            with open_part(self._path, number) as stream:
                if not isinstance(stream, gzip.GzipFile):
                    return stream.seek(0, io.SEEK_END)
                raw = stream.fileobj
                raw.seek(-4, io.SEEK_END)
                return int.from_bytes(raw.read(4), "little")
        except OSError:
            return 0


def _buffered(stream: IO[bytes]) -> IO[bytes]:
    """Lines of a compressed file come one by one through Python otherwise."""
    is_packed = isinstance(stream, gzip.GzipFile)
    return io.BufferedReader(stream, _READ_BYTES) if is_packed else stream


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    return (line for line in stream if line.endswith(b"\n"))


def _kind_of(line: bytes) -> str:
    """ "" if it is no event."""
    found = _KIND.match(line)
    if found is not None:
        return found[1].decode()
    record = _parsed(line)
    return "" if record is None else str(record.get("event"))


def _parsed(line: bytes) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
