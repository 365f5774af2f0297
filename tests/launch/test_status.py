"""The status of runs that live, are dead, are old, or are no runs."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import status
from launch.monitoring.rotation import put_aside, tidy
from launch.monitoring.run_state import SILENT_AFTER_S
from launch.monitoring.run_status import read_status

NOW = 1_000_000.0


def write(folder: Path, name: str, *records: object) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n")


def make_run(folder: Path, at: float = NOW) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    waits = {"wait_percent/learner/sample": 61.0}
    record = {"timestamp": at, "update": 7, "global_step": 320, "avg_return": 1.5, **waits}
    write(folder, "metrics.jsonl", {"timestamp": at - 5}, record)
    beats = {
        "learner": {"phase": "train", "state": "healthy", "age_s": 2.5, "pid": 11},
        "env-actor-0": {"phase": "collect", "state": "suspect", "age_s": 70.0, "pid": 12},
    }
    write(folder, "heartbeat.jsonl", {"timestamp": at, "processes": beats})
    learner = {
        "role": "learner",
        "wall_s": 100.0,
        "stages": {"train": [40.0, 9], "limiter-wait": [60.0, 0]},
        "pid": 11,
        "work": {"method": "train", "age_s": 2.0, "queued": 1},
    }
    times = {"timestamp": at, "wall_s": 120.0, "processes": {"learner": learner}}
    (folder / "timings.json").write_text(json.dumps(times))
    failure = {"event": "child_failed", "child": "env-actor-0", "cause": "it broke"}
    write(
        folder,
        "events.jsonl",
        {"timestamp": at - 90, "event": "episode_end"},
        {"timestamp": at - 80, **failure},
    )
    return folder


def shown(capsys, folder: Path, *words: str) -> str:
    assert status.main([str(folder), *words]) == 0
    return capsys.readouterr().out


def test_a_live_run_shows_who_is_at_what_and_what_went_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    text = shown(capsys, make_run(tmp_path / "run", time.time()))
    assert "running" in text and "env steps 320" in text
    assert "learner waits for sample 61%" in text
    lines = text.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("learner ")]
    for part in ("11", "healthy", "train 2.5 s ago", "train for 2.0 s, 1 more asked for"):
        assert part in lines[at], lines[at]
    assert lines[at + 1].strip() == "100.0 s: limiter-wait 60%, train 40%"
    (actor,) = [line for line in lines if line.startswith("env-actor-0 ")]
    for part in ("12", "suspect", "collect 70.0 s ago", "failed 1 times"):
        assert part in actor, actor
    assert "child_failed: child env-actor-0, cause it broke" in text
    assert "child_failed" not in shown(capsys, tmp_path / "run", "--alerts", "0")


@pytest.mark.parametrize(
    ("summary", "events", "seconds_later", "state"),
    [
        ({}, [], 1.0, "running"),
        ({}, [], SILENT_AFTER_S + 1.0, "silent"),
        ({"finished": True}, [], 1e6, "finished"),
        ({"finished": False}, [], 1e6, "stopped"),
        ({}, [{"timestamp": NOW + 1, "event": "failed", "cause": "x"}], 10.0, "failed"),
        # It has been saving what it can for a minute.
        ({}, [{"timestamp": NOW - 60, "event": "failed", "cause": "x"}], 1.0, "failed"),
        # It failed, and was started again.
        (
            {},
            [
                {"timestamp": NOW - 60, "event": "failed", "cause": "x"},
                {"timestamp": NOW - 59, "event": "started"},
            ],
            1.0,
            "running",
        ),
    ],
)
def test_the_state_of_a_run(tmp_path, summary, events, seconds_later, state):
    run = make_run(tmp_path / "run")
    if summary:
        (run / "summary.json").write_text(json.dumps(summary))
    if events:
        write(run, "events.jsonl", *events)
    assert read_status(run, lambda: NOW + seconds_later).state == state


def test_the_end_of_long_files_is_enough(tmp_path):
    """Of files that were just put aside the newest part counts; older ones are not opened."""
    run = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "heartbeat.jsonl", "events.jsonl"):
        put_aside(run / name)
        tidy(run / name, keep=9)
        (run / f"{name}.000001.gz").rename(run / f"{name}.000002.gz")
        (run / f"{name}.000001.gz").write_bytes(b"no gzip")
    write(run, "events.jsonl", *[{"timestamp": NOW, "event": "episode_end"}] * 50_000)
    shown = read_status(run, lambda: NOW)
    assert shown.metrics["update"] == 7
    assert {row.name for row in shown.processes} == {"learner", "env-actor-0"}
    assert shown.notes == ("events.jsonl: alerts and failures are of the newest events only",)


def test_ages_count_until_now_and_an_old_heartbeat_is_said(tmp_path, capsys):
    """The monitor has died, the driver goes on."""
    run = make_run(tmp_path / "run", time.time() - 100.0)
    times = json.loads((run / "timings.json").read_text())
    (run / "timings.json").write_text(json.dumps(times | {"timestamp": time.time() - 3.0}))
    rows = {row.name: row for row in read_status(run).processes}
    assert rows["learner"].age_s == pytest.approx(102.5, abs=1.0)
    assert rows["learner"].work_s == pytest.approx(5.0, abs=1.0)
    text = shown(capsys, run)
    assert "running" in text and "heartbeat 100." in text
    assert "stale_heartbeat: the monitor writes nothing any more" in text


@pytest.mark.parametrize(
    ("state", "summary", "is_alert"),
    [
        ("healthy", {}, True),
        ("", {}, True),
        ("quarantined", {}, False),
        ("healthy", {"finished": True}, False),
    ],
)
def test_a_process_that_stalls_is_an_alert(tmp_path, capsys, state, summary, is_alert):
    run = make_run(tmp_path / "run", time.time())
    beat = {"phase": "train", "state": state, "age_s": 130.0, "is_stalled": True}
    record = {"timestamp": time.time(), "processes": {"learner": beat}}
    write(run, "heartbeat.jsonl", record)
    if summary:
        (run / "summary.json").write_text(json.dumps(summary))
    alert = "stalled: learner has not answered for 130 s, at train"
    assert (alert in shown(capsys, run)) == is_alert


def test_a_run_that_has_written_nothing_yet_is_starting(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    text = shown(capsys, tmp_path)
    assert "starting, nothing recorded yet" in text and "no alerts" in text


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "parent"])
def test_what_is_no_run_is_refused_with_a_hint(tmp_path, capsys, kind):
    path = tmp_path / "place"
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "parent":
        make_run(path / "inner")
    with pytest.raises(SystemExit) as left:
        status.main([str(path)])
    assert left.value.code == 2
    words = capsys.readouterr().err
    assert words.startswith("error: ") and str(path) in words
    assert kind != "parent" or str(path / "inner") in words


def test_half_written_and_strange_records_are_left_out_and_said(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('"text"\n{"timestamp": 1e999, "global_st')
    (run / "timings.json").write_text('{"timestamp": 1')
    text = shown(capsys, run)
    assert "note: metrics.jsonl: 1 lines are no records" in text
    assert "note: timings.json can't be read" in text
    assert "env-actor-0" in text


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = ("timestamp", "processes", "event", "age_s", "stages", "work", "wall_s", "pid", "child")
records = st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=4),
    jsons
    | st.just({"learner": {"work": 1, "stages": {"train": ["x"]}, "wall_s": 2, "age_s": "?"}}),
    max_size=4,
)


@settings(max_examples=60)
@given(metrics=records, beat=records, event=records, times=records | jsons)
def test_any_record_is_shown_or_left_out(tmp_path_factory, metrics, beat, event, times):
    run = make_run(tmp_path_factory.mktemp("run"))
    write(run, "metrics.jsonl", metrics)
    write(run, "heartbeat.jsonl", beat)
    write(run, "events.jsonl", {**event, "event": "failed"})
    (run / "timings.json").write_text(json.dumps(times))
    assert status.main([str(run)]) == 0
