"""docs/metrics.md against the names that the code uses."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

from launch import train
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


def test_a_run_writes_documented_metrics_only(tmp_path: Path) -> None:
    """Every part that has figures takes part, the language model and reanalysis included."""
    arguments = shlex.split(
        """--preset mario-quick --runtime serial --device cpu --envs-per-actor 2
        --acting.num-actors 1 --acting.segment-length 8 --acting.collect-steps 16 --simulations 4
        --total-env-steps 112 --replay.min-positions 16 --replay.capacity-mb 50
        --learner.batch-size 8 --limiter.samples-per-insert 1 --control.updates-per-call 2
        --evaluation.every-env-steps 40 --evaluation.n-episodes 1 --evaluation.final-episodes 1
        --evaluation.max-steps 6 --schedule.wm-train-freq 2
        --schedule.llm-train-freq 1 --language.batch-size 4 --language.micro-batch-size 4
        --control.log-period-s 0.1 --reanalysis.share 0.5
        --learner.publish-every 2"""
    )
    assert train.main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert {"loss_total", "prior_sent_total", "language_loss", "eval_return_mean"} <= names
    assert {"reanalysis_segments_total", "reanalysis_prior_share", "reanalysed_share"} <= names
    pools = {"search_cache_init_hits", "search_cache_recurrent_bytes_used"}
    assert pools | {"search_cache_scratch_bytes_total", "search_cache_init_hit_rate"} <= names
    assert not undocumented(names)
