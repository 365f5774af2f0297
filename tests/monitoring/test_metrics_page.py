"""docs/metrics.md against the names that the code uses."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from launch import train
from launch.control.gpu_alarm import GpuAlarm
from launch.monitoring.live_table import ROWS
from launch.monitoring.metrics_writer import RECORD_KEYS
from launch.monitoring.monitor import Monitor
from tests.monitoring.metrics_page import (
    PAGE,
    documented_beat_fields,
    documented_events,
    documented_fields,
    documented_patterns,
    undocumented,
    unwritten,
)


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
    assert "rss_mb_max/env_actor" in monitor.sample()
    assert undocumented({"no_such_metric", "rss_mb_max/a/b"}) == {
        "no_such_metric",
        "rss_mb_max/a/b",
    }


@pytest.mark.parametrize("gpus", [[2, 1], [2, 1, 2]])
def test_events_of_gpus_have_the_fields_that_are_documented(gpus: list[int]) -> None:
    alarm = GpuAlarm()
    found = [alarm.look({"gpu_count": n, "gpu_missing_reason": "lost"}) for n in gpus]
    assert found[-1] is not None
    kind, fields = found[-1]
    assert kind == ("gpu_lost" if gpus[-1] == 1 else "gpu_back")
    assert set(fields) == documented_fields("gpu_lost")
    assert kind == "gpu_lost" or documented_events()[kind].startswith("the same")


def test_heartbeats_have_the_fields_that_are_documented(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.watch({"learner": os.getpid()})
    monitor.watch({"env-actor-0": 1}, "another-machine")
    monitor.sample()
    monitor.write_heartbeat()
    record = json.loads((tmp_path / "heartbeat.jsonl").read_text())
    beats = record["processes"].values()
    assert set(record) | {name for beat in beats for name in beat} == documented_beat_fields()


def events_in_code() -> list[tuple[str, set[str]]]:
    """Kind and fields of every event that is written with its name."""
    found = []
    for file in sorted((PAGE.parents[1] / "launch").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not node.args or node.func.attr not in ("event", "_tell"):
                continue
            kind, fields = node.args[0], {k.arg for k in node.keywords if k.arg}
            if isinstance(kind, ast.Constant):
                found.append((str(kind.value), fields))
            elif isinstance(kind, ast.JoinedStr):
                found += [(name, fields) for name in kinds_like(kind)]
    return found


def kinds_like(text: ast.JoinedStr) -> list[str]:
    """Kinds of the page that an f-string of the code may come to, at least one."""
    parts = [re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in text.values]
    found = [kind for kind in documented_events() if re.fullmatch("".join(parts), kind)]
    assert found, ast.unparse(text)
    return found


def test_every_event_and_its_fields_are_on_the_page() -> None:
    events, documented = events_in_code(), documented_events()
    assert len(events) > 25 and "language_learner_replaced" in dict(events)
    for kind, fields in events:
        assert kind in documented, kind
        unknown = fields - set(re.findall(r"`(\w+)`", documented[kind]))
        # The fields of the next rows are those of the one before.
        assert not unknown or documented[kind].startswith("the same"), (kind, unknown)


def test_a_run_writes_what_is_documented_and_nothing_else(tmp_path: Path) -> None:
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
        --learner.publish-every 2 --env.stall-steps 2 --adaptive.exploration true"""
    )
    assert train.main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert {"loss_total", "prior_sent_total", "language_loss", "eval_return_mean"} <= names
    assert {"reanalysis_segments_total", "reanalysis_prior_share", "reanalysed_share"} <= names
    pools = {"search_cache_init_hits", "search_cache_recurrent_bytes_used"}
    assert pools | {"search_cache_scratch_bytes_total", "search_cache_init_hit_rate"} <= names
    calls = {"rollout_time_s", "learn_time_s", "update_time_ms", "acting_lag_max"}
    assert calls | {"search_depth_mean", "prior_search_kl", "checkpoint_age_min"} <= names
    assert not undocumented(names)
    assert unwritten(names) == []
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["event"] for line in lines}
    assert {"started", "episode_end", "environments_made", "weights"} <= kinds
    assert {"checkpoint", "evaluation"} <= kinds
    assert kinds <= set(documented_events())
    lines = (tmp_path / "run" / "heartbeat.jsonl").read_text().splitlines()
    beats = json.loads(lines[-1])["processes"]
    assert {"driver", "learner", "env-actor-0"} <= set(beats)
    fields = {name for beat in beats.values() for name in beat}
    assert fields < documented_beat_fields() and beats["driver"]["rss_mb"] > 10
