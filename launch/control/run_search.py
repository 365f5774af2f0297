"""Runs below a folder, found within a bound on the directory entries that are looked at."""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

MOST_ENTRIES = 10_000
CHECKPOINTS_FOLDER = "checkpoints"
LOCK_FILE = ".lock"


class RunSearch:
    """Breadth first, newest folder first; follows no links and looks into no run's own folders."""

    def __init__(self, root: Path, *, most_entries: int = MOST_ENTRIES) -> None:
        self._root = root
        self._left = most_entries
        self.is_complete = True  # false once the bound ended the search

    def runs(self) -> Iterator[Path]:
        """Folders that hold `checkpoints/`; stop iterating to stop searching."""
        folders = deque([self._root])
        while folders:
            folder = folders.popleft()
            below = self._folders_in(folder)
            if CHECKPOINTS_FOLDER in (path.name for path in below):
                yield folder
            else:
                folders.extend(below)
            if self._left <= 0:
                self.is_complete = not folders
                return

    def _folders_in(self, folder: Path) -> list[Path]:
        found: list[tuple[float, Path]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._left -= 1
                    if self._left < 0:
                        self.is_complete = False
                        break
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        changed = entry.stat(follow_symlinks=False).st_mtime
                        found.append((changed, Path(entry.path)))
        except OSError:
            pass  # not ours to read, or gone since
        return [path for _, path in sorted(found, key=lambda pair: (-pair[0], pair[1]))]


def is_in_use(run: Path) -> bool:
    """A run that is still going on: its checkpoints may vanish at any time."""
    try:
        lock = os.open(run / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
