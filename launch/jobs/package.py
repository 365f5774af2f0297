"""The working directory as one archive: equal content makes equal bytes, so it is sent once."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from launch.jobs.connection import JobError

# What a run makes, what belongs to one machine, and what may not be passed on.
LEFT_OUT_FOLDERS = {"runs", "build", "dist", "venv", "node_modules", "__pycache__"}
LEFT_OUT_ENDINGS = (
    *(".egg-info", ".pyc"),
    *(".nes", ".z3", ".z4", ".z5", ".z6", ".z8", ".ulx"),  # games
    *(".pem", ".key"),
)
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time that the format knows
MOST_NAMED = 3


def write_package(folder: Path, archive: Path, limit_bytes: int) -> int:
    """Writes what a job needs of `folder` to `archive` (zip); returns its size in bytes.

    Raises JobError, naming the largest parts, once it is larger than `limit_bytes`.
    """
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        for path in packaged_files(folder):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            content = path.read_bytes()
            package.writestr(entry, content)
            sizes[entry.filename] = len(content)
            if archive.stat().st_size > limit_bytes:
                raise JobError(_too_large(folder, sizes, limit_bytes))
    if archive.stat().st_size > limit_bytes:
        raise JobError(_too_large(folder, sizes, limit_bytes))
    return archive.stat().st_size


def packaged_files(folder: Path) -> Iterator[Path]:
    """Regular files in a fixed order. Links are not followed: they may lead anywhere."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_left_out(name, is_folder=True))
        for name in sorted(files):
            path = Path(root, name)
            if not _is_left_out(name, is_folder=False) and path.is_file() and not path.is_symlink():
                yield path


def _is_left_out(name: str, *, is_folder: bool) -> bool:
    """Hidden names are those of tools, environments and secrets (.git, .venv, .env)."""
    if name.startswith(".") or name.lower().endswith(LEFT_OUT_ENDINGS):
        return True
    return is_folder and name in LEFT_OUT_FOLDERS


def _too_large(folder: Path, sizes: dict[str, int], limit_bytes: int) -> str:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:MOST_NAMED]
    named = ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
    return (
        f"the working directory {folder} takes more than {limit_bytes / 2**20:.0f} MiB, which is "
        f"the most that Ray's job server accepts; the largest so far: {named}; move such files "
        "elsewhere, below runs/ for instance, which is not sent"
    )
