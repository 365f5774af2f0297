"""docs/metrics.md against the names that the code uses."""

from __future__ import annotations

import os
import re
from pathlib import Path

from launch.monitoring.live_table import ROWS
from launch.monitoring.metrics_writer import RECORD_KEYS
from launch.monitoring.monitor import Monitor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def documented_patterns(page: Path = PAGE) -> list[re.Pattern[str]]:
    """A pattern per metric of the page; `<process>` and the like stand for one name."""
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", page.read_text(), re.M)
    return [re.compile(re.sub(r"<\w+>", r"[\\w.-]+", name)) for name in rows]


def undocumented(names: set[str]) -> set[str]:
    patterns = documented_patterns()
    return {name for name in names if not any(p.fullmatch(name) for p in patterns)}


def test_page_lists_each_metric_once() -> None:
    names = [pattern.pattern for pattern in documented_patterns()]
    assert len(names) > 50
    assert len(names) == len(set(names))


def test_table_and_record_show_documented_metrics() -> None:
    shown = {cell.metric for _, cells in ROWS for cell in cells}
    assert not undocumented(shown | set(RECORD_KEYS))


def test_monitor_writes_documented_metrics() -> None:
    monitor = Monitor()
    monitor.watch({"env-actor-0": os.getpid()})
    assert not undocumented(set(monitor.sample()))
    assert undocumented({"no_such_metric", "rss_mb/a/b"}) == {"no_such_metric", "rss_mb/a/b"}
