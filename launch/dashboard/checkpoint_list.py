"""The checkpoints of a run as the live page lists them: names and marks, nothing inside is read."""

from __future__ import annotations

import re
from pathlib import Path

from launch.monitoring.json_lines import JsonValue

MOST = 12  # newest first
_NAME = re.compile(r"step-(\d{1,15})-update-(\d{1,15})(?:-\d+)?$")
_MARKS = {"LATEST": "newest", "BEST": "best evaluation"}
_LONGEST_MARK_BYTES = 1_000
_FROM_EVENT = ("reason", "seconds", "stall_s")


class CheckpointList:
    """Follows the folder `checkpoints/`, and what events say of how each was made."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "checkpoints"
        self._made: dict[str, dict[str, JsonValue]] = {}

    def told(self, event: dict[str, JsonValue]) -> None:
        """An event of the kind `checkpoint`."""
        name = Path(str(event.get("path", ""))).name
        if _NAME.match(name):
            self._made[name] = event

    def rows(self) -> list[JsonValue]:
        try:
            entries = [entry for entry in self._folder.iterdir() if _NAME.match(entry.name)]
        except OSError:
            return []
        marks = {self._pointed(mark): text for mark, text in _MARKS.items()}
        both = self._pointed("LATEST") == self._pointed("BEST")
        newest = sorted(entries, key=lambda entry: _counts(entry.name), reverse=True)[:MOST]
        rows: list[JsonValue] = []
        for entry in newest:
            env_steps, updates = _counts(entry.name)
            mark = ", ".join(_MARKS.values()) if both else marks.get(entry.name)
            event = self._made.get(entry.name, {})
            row: dict[str, JsonValue] = {
                "name": entry.name,
                "env_steps": env_steps,
                "updates": updates,
                "made_at": event.get("timestamp") or _changed_at(entry),
                "mark": mark if entry.name in marks else None,
            }
            rows.append(row | {name: event.get(name) for name in _FROM_EVENT})
        return rows

    def _pointed(self, mark: str) -> str:
        """The name in a pointer file; "" without one."""
        try:
            with (self._folder / mark).open("rb") as stream:
                return stream.read(_LONGEST_MARK_BYTES).decode(errors="replace").strip()
        except OSError:
            return ""


def _counts(name: str) -> tuple[int, int]:
    found = _NAME.match(name)
    assert found is not None, name
    return int(found[1]), int(found[2])


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
