"""What a run leaves on a disk, searched for words that must not be there."""

from collections.abc import Iterable
from pathlib import Path


def files_with(word: str, places: Iterable[Path]) -> list[str]:
    """Regular files at or below `places` whose bytes hold `word`."""
    found = []
    for place in places:
        for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
            if path.is_file() and not path.is_symlink() and word.encode() in path.read_bytes():
                found.append(str(path))
    return found
