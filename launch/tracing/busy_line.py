"""One line on the long work that a run waits for: checkpoints of a large replay, evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.tracing.in_flight import Ask, Work

SHOWN_AFTER_S = 2.0
MOST_SHOWN = 3
VERBS = {
    "save": "saves its part of a checkpoint",
    "load": "loads its part of a checkpoint",
    "load_matching": "loads its part of a checkpoint",
    "evaluate": "plays evaluation episodes",
}


def busy_line(work: Sequence[Work], now: float) -> str:
    """Who has been at what for how long, with bytes where there are; empty if nothing is long."""
    parts = []
    for item in work:
        seconds = now - item.since
        if item.ask.method in VERBS and seconds >= SHOWN_AFTER_S:
            verb = VERBS[item.ask.method]
            parts.append(f"{item.ask.child.name} {verb}, {seconds:.0f} s{_bytes(item.ask)}")
    more = len(parts) - MOST_SHOWN
    return "; ".join(parts[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _bytes(ask: Ask) -> str:
    """How much a save has written, beside what the one before it came to."""
    if ask.method != "save" or not ask.args:
        return ""
    written = size_bytes(Path(str(ask.args[0])))
    before = size_bytes(Path(str(ask.args[1]))) if len(ask.args) > 1 and ask.args[1] else 0
    of = f" of about {before / 1e6:,.0f}" if before else ""
    return f", {written / 1e6:,.0f}{of} MB"


def size_bytes(folder: Path) -> int:
    """Of all files below `folder`; those that come and go meanwhile count for nothing."""
    total = 0
    try:
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    except OSError:
        return total
    return total
