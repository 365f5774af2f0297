"""What the page is told of a run: growing, resumed, finished, half-written and very old ones."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.dashboard.run_view import (
    MAX_BEAT_BYTES,
    MAX_LIVE_BYTES,
    MAX_POINTS,
    NotARunError,
    RunView,
    check_run,
)
from launch.monitoring import json_lines
from launch.monitoring.json_lines import parse_json


def sections(view: RunView, seen: dict[str, int] | None = None) -> dict:
    view.refresh()
    return {m["kind"]: m["data"] for m in view.changed_since({} if seen is None else seen)}


def test_sends_each_section_once_and_then_only_news(run) -> None:
    view, seen = RunView(run.path), {}
    first = sections(view, seen)
    kinds = {"status", "curves", "figures", "fleet", "events", "live", "checkpoints", "settings"}
    assert set(first) == kinds | {"waits", "notes"}
    assert sections(view, seen) == {}
    run.live("Pipe ahead")
    assert sections(view, seen)["live"]["environments"][0]["prompt"] == "Pipe ahead"
    run.metrics(100, avg_return=20.0)
    news = sections(view, seen)
    assert news["curves"]["charts"][0]["lines"]["avg_return"][-1] == 20.0
    assert "live" not in news and "events" not in news
    assert set(sections(view)) == set(first), "a second browser gets everything"


def test_curves_keep_gaps_and_the_newest_point(run) -> None:
    curves = sections(RunView(run.path))["curves"]
    assert curves["step"] == list(range(0, 100, 10))
    lines = {name: line for chart in curves["charts"] for name, line in chart["lines"].items()}
    assert lines["loss_total"][5] is None and lines["loss_total"][4] == 1.0
    assert set(lines) == {"avg_return", "loss_total"}, "no empty charts"
    for step in range(100, 100 + 3 * MAX_POINTS):
        run.metrics(step, avg_return=1.0)
    curves = sections(RunView(run.path))["curves"]
    assert len(curves["step"]) <= MAX_POINTS and curves["step"][-1] == 99 + 3 * MAX_POINTS


def test_resumed_run_continues_from_its_checkpoint(run) -> None:
    run.metrics(45, avg_return=-1.0)
    curves = sections(RunView(run.path))["curves"]
    assert curves["step"] == [0, 10, 20, 30, 40, 45]


def test_fleet_joins_heartbeats_figures_and_restarts(run) -> None:
    fleet = {p["name"]: p for p in sections(RunView(run.path))["fleet"]["processes"]}
    assert set(fleet) == {"learner", "env-actor-0"}
    assert (fleet["learner"]["rss_mb"], fleet["learner"]["restarts"]) == (512.0, 1)
    assert fleet["env-actor-0"]["state"] == "suspect"
    assert fleet["env-actor-0"]["is_stalled"] and fleet["env-actor-0"]["rss_mb"] is None
    assert time.time() - fleet["env-actor-0"]["beat_at"] == pytest.approx(130, abs=5)


def test_fleet_takes_the_figures_of_the_heartbeat_before_those_of_old_metrics(run) -> None:
    now = {"age_s": 1.0, "rss_mb": 640.5, "cpu_percent": 99.0}
    line = {"timestamp": time.time(), "processes": {"learner": now}}
    run.append("heartbeat.jsonl", line)
    (learner,) = sections(RunView(run.path))["fleet"]["processes"]
    assert (learner["rss_mb"], learner["cpu_percent"]) == (640.5, 99.0)


def test_states_of_a_run(run, empty_run) -> None:
    assert sections(RunView(empty_run.path))["status"]["state"] == "starting"
    assert sections(RunView(run.path))["status"]["state"] == "running"
    late = RunView(run.path, clock=lambda: time.time() + 600)
    assert sections(late)["status"]["state"] == "silent"
    (run.path / "summary.json").write_text('{"finished": false}')
    assert sections(late)["status"]["state"] == "stopped"
    run.finish()
    assert sections(late)["status"]["state"] == "finished"


def test_a_failed_run_is_failed_until_another_process_of_it_begins(run) -> None:
    def told(kind: str) -> str:
        run.append("events.jsonl", {"timestamp": time.time(), "event": kind})
        return sections(view)["status"]["state"]

    view = RunView(run.path)
    assert told("failed") == "failed"
    run.heartbeat(learner=1.0)
    assert told("checkpoint") == "failed", "what it saves comes after"
    assert told("resumed") == "running"


def test_a_resumed_run_is_alive_before_its_first_record(run) -> None:
    late = RunView(run.path, clock=lambda: time.time() + 600)
    assert sections(late)["status"]["state"] == "silent"
    run.append("events.jsonl", {"timestamp": time.time() + 590, "event": "resumed"})
    assert sections(late)["status"]["state"] == "running"


def test_a_run_that_writes_rarely_is_not_silent_between_two_records(run) -> None:
    late = RunView(run.path, clock=lambda: time.time() + 600)
    (run.path / "config.yaml").write_text("control:\n  log_period_s: 300.0\n")
    assert sections(late)["status"]["state"] == "running"


def test_a_run_that_writes_its_times_while_it_saves_is_not_silent(run) -> None:
    late = RunView(run.path, clock=lambda: time.time() + 600)
    run.timings(700.0, at=time.time() + 590)
    assert sections(late)["status"]["state"] == "running"


def test_pictures_of_an_older_run_are_shown_as_one_environment(run) -> None:
    run.old_live("Pipe ahead")
    (entry,) = sections(RunView(run.path))["live"]["environments"]
    assert (entry["actor"], entry["env"], entry["prompt"]) == (0, 0, "Pipe ahead")


def test_checkpoints_are_listed_newest_first_with_what_is_known(run) -> None:
    run.checkpoint(120)
    (run.path / "checkpoints" / ".tmp-step-0000000130-update-00000065").mkdir()
    (run.path / "checkpoints" / "step-x").mkdir()
    rows = sections(RunView(run.path))["checkpoints"]["checkpoints"]
    assert [row["env_steps"] for row in rows] == [120, 80, 50]
    assert [row["mark"] for row in rows] == [None, "newest, best evaluation", None]
    assert (rows[1]["reason"], rows[1]["seconds"], rows[1]["updates"]) == ("periodic", 1.25, 40)
    assert rows[0]["reason"] is None and rows[0]["made_at"] is not None, "made by an older version"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[1, 2]",
        "{",
        '{"global_step": "many"}',
        '{"a": 1}',
        '{"global_step": true}',
        '{"global_step": 1e999}',
        '{"global_step": 1%s}' % ("0" * 400),
        "[" * 100_000,
        "\xff",
    ],
    ids=range(11),
)
def test_strange_records_are_skipped(run, line: str) -> None:
    before = sections(RunView(run.path))["curves"]
    for name in ("metrics.jsonl", "events.jsonl", "heartbeat.jsonl"):
        with (run.path / name).open("a") as stream:
            stream.write(line + "\n")
    for name in ("live.json", "live-settings.json", "checkpoints/LATEST"):
        (run.path / name).write_text(line)
    assert sections(RunView(run.path))["curves"] == before


def test_strange_values_in_known_places_do_not_break_it(empty_run) -> None:
    empty_run.append("heartbeat.jsonl", {"timestamp": "now", "processes": {"learner": 3}})
    empty_run.append("events.jsonl", {"event": ["x"], "timestamp": {}})
    empty_run.metrics(1, avg_return="high", loss_total=float("nan"), **{"rss_mb/learner": "much"})
    (empty_run.path / "summary.json").write_text("[]")
    found = sections(RunView(empty_run.path))
    (row,) = found["fleet"]["processes"]
    assert (row["name"], row["rss_mb"], row["beat_at"]) == ("learner", None, None)
    assert found["curves"]["charts"] == []
    json.dumps(found, allow_nan=False)  # browsers refuse NaN


def test_only_the_end_of_the_heartbeats_is_read(run, monkeypatch) -> None:
    """A long run has gigabytes of them, most of them put aside."""
    path = run.path / "heartbeat.jsonl"
    line = json.dumps({"timestamp": 1.0, "processes": {"gone": {"age_s": 1.0}}}) + "\n"
    n_lines = MAX_BEAT_BYTES // len(line)
    for number in (1, 2):
        path.with_name(f"{path.name}.{number:06d}").write_text(line * n_lines)
    path.write_text(3 * n_lines * line + path.read_text())
    n_parsed = 0

    def parse(data: bytes):
        nonlocal n_parsed
        n_parsed += 1
        return parse_json(data)

    monkeypatch.setattr(json_lines, "parse_json", parse)
    processes = {p["name"]: p["beat_at"] for p in sections(RunView(run.path))["fleet"]["processes"]}
    assert set(processes) == {"learner", "env-actor-0"} and processes["learner"] is not None
    assert n_parsed < 1.1 * n_lines, "of five times as many"


def test_just_after_a_rotation_the_newest_part_has_the_newest_heartbeat(run) -> None:
    (run.path / "heartbeat.jsonl").rename(run.path / "heartbeat.jsonl.000007")
    view, seen = RunView(run.path), {}
    fleet = {p["name"]: p for p in sections(view, seen)["fleet"]["processes"]}
    assert fleet["env-actor-0"]["is_stalled"]
    run.heartbeat(learner=2.0, env_actor_0=3.0)
    fleet = {p["name"]: p for p in sections(view, seen)["fleet"]["processes"]}
    assert not fleet["env-actor-0"]["is_stalled"]


def test_pictures_that_are_too_large_to_read_are_told_of(run) -> None:
    view = RunView(run.path)
    assert sections(view)["notes"]["notes"] == []
    content = json.loads((run.path / "live.json").read_text())
    (run.path / "live.json").write_text(json.dumps({**content, "x": "x" * MAX_LIVE_BYTES}))
    found = sections(view)
    (note,) = found["notes"]["notes"]
    assert note.startswith("live.json has 4,1") and "reads 4,194,304 at most" in note
    assert len(found["live"]["environments"]) == 3, "the older ones stay"
    run.live("Pipe ahead")
    found = sections(view)
    assert found["notes"]["notes"] == []
    assert found["live"]["environments"][0]["prompt"] == "Pipe ahead"


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """An open folder, and no rights of the superuser."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        was = os.geteuid()
        yield Path(folder)
        os.seteuid(was)


def give_up_rights() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_folder_that_may_not_be_read_is_named_with_the_cause(as_nobody: Path) -> None:
    (as_nobody / "mine").mkdir(mode=0o700)
    os.chmod(as_nobody / "mine", 0)
    give_up_rights()
    for path in (as_nobody / "mine", as_nobody / "mine" / "run"):
        with pytest.raises(NotARunError, match=r"mine.* can't be read: Permission denied; name a"):
            check_run(path)


def test_a_neighbour_that_may_not_be_read_breaks_no_hint(as_nobody: Path) -> None:
    (as_nobody / "lost+found").mkdir()
    os.chmod(as_nobody / "lost+found", 0)
    (as_nobody / "demo").mkdir()
    (as_nobody / "demo" / "config.yaml").write_text("seed: 0\n")
    give_up_rights()
    with pytest.raises(NotARunError, match=r"runs inside it: \S*demo$"):
        check_run(as_nobody)


def test_a_name_that_no_folder_can_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match="can't be read: File name too long"):
        check_run(tmp_path / ("x" * 5000))


def test_not_a_run_is_told_with_what_could_be_meant(tmp_path: Path, run) -> None:
    check_run(run.path)
    with pytest.raises(NotARunError, match="does not exist"):
        check_run(tmp_path / "nothing")
    with pytest.raises(NotARunError, match="is a file"):
        check_run(run.path / "config.yaml")
    with pytest.raises(NotARunError, match=r"is not a run directory.*runs inside it: .*demo-run"):
        check_run(tmp_path)
