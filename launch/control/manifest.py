"""What a checkpoint's manifest may say: names below its folder, sizes and checksums within bounds.

A manifest may be damaged or made by somebody else, so nothing is read or written by its names
before they have passed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

FORMAT_VERSION = 1  # of manifest.json and counters.json
MOST_FILES = 1_000_000
LARGEST_FILE_BYTES = 1 << 44
LONGEST_FILE_NAME = 1_000

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECKPOINT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Of one file: its size and the SHA-256 of its content, in hex."""

    n_bytes: int
    sha256: str


def checked_inventory(
    manifest: Mapping[str, object], where: str, *, required: str
) -> dict[str, FileEntry]:
    """The files that `manifest` lists, by their names below the checkpoint's folder.

    required: a file that every checkpoint has. Raises CheckpointError naming `where` and the entry.
    """
    check_format(manifest, where)
    files = manifest.get("files")
    if not isinstance(files, Mapping) or required not in files:
        raise CheckpointError(f"{where} lists no files; use another checkpoint")
    if len(files) > MOST_FILES:
        raise CheckpointError(f"{where} lists {len(files):,} files, at most {MOST_FILES:,} allowed")
    inventory = {name: _entry(name, entry, where) for name, entry in files.items()}
    folders = {str(parent) for name in inventory for parent in PurePosixPath(name).parents}
    for name in inventory:
        if name in folders:
            raise CheckpointError(
                f"{where} names {name[:200]} as a file and as a folder; use another checkpoint"
            )
    return inventory


def check_format(content: Mapping[str, object], where: str) -> None:
    """Raises CheckpointError for a checkpoint that is newer than this program, or has no format."""
    found = content.get("format", FORMAT_VERSION)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError(f"{where} has no format number; use another checkpoint")
    if found > FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format {found}, this program reads up to {FORMAT_VERSION}: it was "
            "written by a newer version; update the program, or use another checkpoint"
        )


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder may be called so: one plain part, not hidden."""
    return _CHECKPOINT_NAME.fullmatch(name) is not None


def _entry(name: str, entry: object, where: str) -> FileEntry:
    _check_name(name, where)
    n_bytes = entry.get("bytes") if isinstance(entry, Mapping) else None
    sha256 = entry.get("sha256") if isinstance(entry, Mapping) else None
    is_size = isinstance(n_bytes, int) and not isinstance(n_bytes, bool)
    if (
        not is_size
        or not 0 <= n_bytes <= LARGEST_FILE_BYTES
        or not isinstance(sha256, str)
        or not _SHA256.fullmatch(sha256)
    ):
        raise CheckpointError(f"{where} is damaged at {name}; use another checkpoint")
    return FileEntry(n_bytes, sha256)


def _check_name(name: str, where: str) -> None:
    """Only what names a file below the checkpoint's folder, in the one way to write it."""
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute():
        raise CheckpointError(
            f"{where} names {name[:200]!r}, outside the checkpoint; use another checkpoint"
        )
    is_plain = name == str(path) and name != "." and name.isprintable() and "\\" not in name
    if not is_plain or len(name) > LONGEST_FILE_NAME:
        raise CheckpointError(
            f"{where} names {name[:200]!r}, which is no plain file name; use another checkpoint"
        )
