"""How a run is, by the order of its events and the age of what it wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from launch.dashboard.run_view import RunView
from launch.monitoring.run_state import SILENT_AFTER_S, has_failed, number, state_of_run
from launch.monitoring.run_status import read_status
from launch.reports.run_record import read_run

NOW = 1_000_000.0
RESCUE = ("failed", "child_state", "child_failed", "checkpoint", "not_rescued")


@pytest.mark.parametrize("begin", ["started", "resumed", "replay_placed"])
def test_a_failure_lasts_until_a_process_begins_anew(begin: str) -> None:
    events = [{"event": kind} for kind in (begin, "weights", *RESCUE)]
    assert not has_failed(events[:2])
    assert has_failed(events), "whatever it still did"
    assert not has_failed([*events, {"event": begin}])
    assert has_failed([*events, {"event": begin}, {"event": "failed"}])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, None) for value in (10**400, -(10**400), 1e101, math.inf, math.nan)),
        *((value, None) for value in (True, "1", None)),
        *((3, 3.0), (-0.5, -0.5)),
    ],
)
def test_what_is_no_figure_is_none(value: object, expected: float | None) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(("period_s", "limit_s"), [(5.0, SILENT_AFTER_S), (120.0, 720.0)])
def test_a_run_that_writes_seldom_is_not_silent_soon(
    tmp_path: Path, period_s: float, limit_s: float
) -> None:
    (tmp_path / "config.yaml").write_text(f"control: {{log_period_s: {period_s}}}\n")
    for later, state in ((limit_s - 1, "running"), (limit_s + 1, "silent")):
        assert state_of_run(tmp_path, NOW, has_failed=False, now=NOW + later) == state


def test_a_run_at_a_long_checkpoint_is_running(tmp_path: Path) -> None:
    """It writes no records, only what everybody is at."""
    (tmp_path / "timings.json").write_text(json.dumps({"timestamp": NOW + 300.0}))
    assert state_of_run(tmp_path, NOW, has_failed=False, now=NOW + 310.0) == "running"
    assert state_of_run(tmp_path, None, has_failed=False, now=NOW + 310.0) == "running"
    assert state_of_run(tmp_path, None, has_failed=False, now=NOW + 400.0) == "silent"


@pytest.mark.parametrize("text", ["", "{", "[]", "1e999", "control: [1"])
def test_strange_files_say_nothing(tmp_path: Path, text: str) -> None:
    for name in ("config.yaml", "summary.json", "timings.json"):
        (tmp_path / name).write_text(text)
    assert state_of_run(tmp_path, None, has_failed=False, now=NOW) == "starting"
    assert state_of_run(tmp_path, NOW, has_failed=True, now=NOW) == "failed"


def test_numbers_too_large_for_a_float_break_no_reader(tmp_path: Path) -> None:
    huge = "1" + "0" * 400
    record = f'{{"timestamp": {huge}, "global_step": {huge}, "event": "failed", "age_s": {huge}}}\n'
    for name in ("metrics.jsonl", "events.jsonl", "heartbeat.jsonl"):
        (tmp_path / name).write_text(record)
    assert read_status(tmp_path).state == "failed"
    assert read_run(tmp_path).state == "failed"
    RunView(tmp_path).refresh()
