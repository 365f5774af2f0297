"""The newest records of a run as one table, for notebooks and SQL: metrics/latest.parquet."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Mapping
from math import nan
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PARQUET_FILE = "metrics/latest.parquet"
MAX_ROWS = 10_000  # 14 hours at a record every 5 s; 80 kB in memory per column
PERIOD_S = 60.0
WRITING_SHARE = 0.01  # of the time, at most


class ParquetFile:
    """Rewritten whole, and replaced at once, so that a reader never sees half of it.

    A column per figure, float64; null where a record has none. Goes on from the file that is there.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._due_at = float("-inf")
        self._columns, self._n_rows = _read(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            if name not in self._columns:
                self._columns[name] = array("d", [nan]) * self._n_rows
            self._columns[name].append(value)
        self._n_rows += 1
        for column in self._columns.values():
            if len(column) < self._n_rows:
                column.append(nan)
        if self._n_rows >= 2 * MAX_ROWS:
            self._forget_oldest()
        if self._clock() >= self._due_at:
            self._save()

    def close(self, *, has_failed: bool) -> None:
        if self._n_rows:
            self._save()

    def _forget_oldest(self) -> None:
        for column in self._columns.values():
            del column[:-MAX_ROWS]
        self._n_rows = MAX_ROWS

    def _save(self) -> None:
        began = self._clock()
        newest = {name: np.array(column)[-MAX_ROWS:] for name, column in self._columns.items()}
        table = pa.table({n: pa.array(v, from_pandas=True) for n, v in newest.items()})
        temporary = self._path.with_name(f".{self._path.name}")
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, self._path)
        now = self._clock()
        self._due_at = now + max(PERIOD_S, (now - began) / WRITING_SHARE)


def _read(path: Path) -> tuple[dict[str, array[float]], int]:
    """Columns and number of rows of an earlier file; none where there is no readable one."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return {}, 0
    if not all(pa.types.is_floating(field.type) for field in table.schema):
        return {}, 0
    return {n: array("d", table[n].to_numpy()) for n in table.column_names}, table.num_rows
