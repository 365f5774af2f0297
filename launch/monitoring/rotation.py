"""Old parts of a file that grew too large: NAME.000001.gz, NAME.000002.gz, ..., newest last.

A part is renamed first and compressed later, in a thread, so that whoever writes waits for neither;
until then, and after a crash meanwhile, it lies there as NAME.000002.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

MEBIBYTE = 1 << 20
DAMAGED = (OSError, EOFError, zlib.error)  # what reading a part may raise
_SUFFIX = re.compile(r"\.(\d{6,})(\.gz)?$")


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is put aside, and how many of its parts stay."""

    max_bytes: int
    keep: int


def part_numbers(path: Path) -> list[int]:
    """Of the parts of `path` that are there, ascending."""
    found = set()
    for name in os.listdir(path.parent) if path.parent.is_dir() else ():
        match = _SUFFIX.fullmatch(name.removeprefix(path.name))
        if name.startswith(path.name) and match is not None:
            found.add(int(match[1]))
    return sorted(found)


def open_part(path: Path, number: int) -> IO[bytes]:
    """The content of a part, compressed or not. Raises FileNotFoundError if it is gone meanwhile;
    reading a damaged one raises one of DAMAGED.
    """
    raw = _part(path, number)
    try:
        return raw.open("rb")
    except FileNotFoundError:  # compressed, be it just now
        return cast(IO[bytes], gzip.open(f"{raw}.gz", "rb"))


def put_aside(path: Path) -> None:
    """Renames `path` to its next part. Raises OSError."""
    numbers = part_numbers(path)
    os.rename(path, _part(path, numbers[-1] + 1 if numbers else 1))


def tidy(path: Path, keep: int) -> None:
    """Compresses all parts of `path`, and removes all but the newest `keep`. Raises OSError."""
    numbers = part_numbers(path)
    for number in numbers[: max(0, len(numbers) - keep)]:
        _part(path, number).unlink(missing_ok=True)
        Path(f"{_part(path, number)}.gz").unlink(missing_ok=True)
    for number in numbers[max(0, len(numbers) - keep) :]:
        raw = _part(path, number)
        if raw.exists():
            _compress(raw)


def _compress(raw: Path) -> None:
    temporary = raw.with_name(f".{raw.name}.gz")
    with raw.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target, MEBIBYTE)
    os.replace(temporary, f"{raw}.gz")
    raw.unlink()


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:06d}")
