"""docs/metrics.md, as tests read it."""

from __future__ import annotations

import re
from pathlib import Path

# Figures that the run below has no occasion for: a search service, several shards, Ray.
ELSEWHERE = re.compile(r"search_served_|replay_shards_|object_store_")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def documented_patterns(page: Path = PAGE) -> list[re.Pattern[str]]:
    """A pattern per metric of the page; `<process>` and the like stand for one name."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", page.read_text(), re.M)
    return [re.compile(re.sub(r"<\w+>", r"[\\w.-]+", name)) for name in rows]


def undocumented(names: set[str]) -> set[str]:
    patterns = documented_patterns()
    return {name for name in names if not any(p.fullmatch(name) for p in patterns)}


def unwritten(names: set[str]) -> list[str]:
    """Figures of the page that are not among `names` and have no reason to be missing."""
    missing = [p.pattern for p in documented_patterns() if not any(map(p.fullmatch, names))]
    return [name for name in missing if not ELSEWHERE.match(name)]


def documented(prefix: str) -> set[str]:
    """Figures of the page that begin so, of those without a part that varies."""
    return {p.pattern for p in documented_patterns() if p.pattern.startswith(prefix)}


def documented_events() -> dict[str, str]:
    """What the page says of the fields of each event."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|$", PAGE.read_text(), re.M)
    return {kind: fields for kinds, fields in rows for kind in re.findall(r"`(\w+)`", kinds)}


def documented_fields(kind: str) -> set[str]:
    """Of an event; what stands in brackets are its values."""
    return set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", documented_events()[kind])))


def documented_beat_fields() -> set[str]:
    """Of the records of heartbeat.jsonl, and of each process in them."""
    text = re.search(r"^## heartbeat.jsonl$(.*?)^## ", PAGE.read_text(), re.M | re.S)
    assert text is not None
    return set(re.findall(r"`(\w+)`", text[1]))
