"""The report of a run: everything in one file, of real, old, half-written and hostile records."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.episodes import Episode
from actors.evaluation_rows import OWN_WAY, row_record, rows_of
from launch import report
from launch.control.reporter import QUIET_EVENTS
from launch.dashboard import run_view
from launch.monitoring.metrics_writer import RECORD_KEYS
from launch.reports.at_end import leave_report
from launch.reports.groups import differing_settings, groups_of
from launch.reports.page import one_run, several_runs
from launch.reports.run_record import read_run
from launch.reports.sections import (
    COMPARED,
    CURVES,
    LEARNING_CURVES,
    MOST_INCIDENTS,
    ORDINARY,
    RATES,
    REPLAY_CURVES,
    TILES,
)
from launch.reports.stages import own_rows, training_rows
from launch.reports.waits import waits_of

VOID = {"meta", "br", "wbr"}


class Outline(HTMLParser):
    """Checks that tags are balanced; collects headings and the places that things come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


class WrittenRun:
    """Files of a run, as a run would write them."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.path = path
        path.mkdir()
        given = {"seed": 0, "env": {"id": "WarpZone/Mario-v0"}, **settings}
        (path / "config.yaml").write_text(json.dumps(given))

    def append(self, name: str, **record: object) -> None:
        with (self.path / name).open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def metrics(self, step: int, **figures: object) -> None:
        head = {"timestamp": 1_700_000_000 + step, "update": step, "global_step": step}
        self.append("metrics.jsonl", **head, **figures)

    def text(self) -> str:
        return one_run(read_run(self.path), self.path)


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return WrittenRun(tmp_path / "run")


def test_every_run_leaves_a_report_that_needs_nothing_beside_it(finished_run: Path) -> None:
    text = (finished_run / "report.html").read_text()
    outline = Outline(text)
    for heading in ("Curves", "Who waits for whom", "Replay", "Stages", "Videos", "Incidents"):
        assert heading in outline.headings
    assert {"Settings", "Versions"} <= set(outline.headings)
    assert "<title>cartpole-run - WarpZone</title>" in text
    assert 'class="state finished"' in text
    assert outline.sources and all(s.startswith("data:video/mp4;base64,") for s in outline.sources)
    written = re.sub(r"http-equiv|base64,[^\"]+", "", text)
    assert "http" not in written, "nothing is fetched from anywhere"
    assert "learning_rate" in text and "torch" in text, "settings and versions"
    assert "The last evaluation of the run itself, after " in text
    assert len(read_run(finished_run).events_of("started")) == 1
    assert not list(finished_run.glob(".report*"))


def test_the_command_writes_the_same_again_and_compares_seeds(finished_run, tmp_path, capsys):
    runs = [Path(shutil.copytree(finished_run, tmp_path / f"seed-{i}")) for i in range(3)]
    for seed, run in enumerate(runs):
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(re.sub(r"(?m)^seed: \d+", f"seed: {seed}", text))
    (runs[0] / "report.html").unlink()
    assert report.main([str(runs[0])]) == 0
    assert (runs[0] / "report.html").stat().st_size > 10_000
    assert report.main([str(r) for r in runs]) == 0
    page = tmp_path / "comparison.html"
    outline = Outline(page.read_text())
    assert "seed (3 runs)" in page.read_text() and 'class="band' in page.read_text()
    assert {"seed-0", "seed-1", "seed-2"} <= set(outline.headings)
    assert str(page) in capsys.readouterr().out


def test_runs_with_other_settings_are_lines_of_their_own(tmp_path):
    a = WrittenRun(tmp_path / "a", total_env_steps=100)
    b = WrittenRun(tmp_path / "b", total_env_steps=100, seed=1)
    c = WrittenRun(tmp_path / "c", total_env_steps=200)
    unreadable = WrittenRun(tmp_path / "d")
    (unreadable.path / "config.yaml").write_text("{half")
    groups = groups_of([read_run(r.path) for r in (a, b, c, unreadable)])
    assert [[r.name for r in g.runs] for g in groups] == [["a", "b"], ["c"], ["d"]]
    assert len({g.label for g in groups}) == 3
    rows = dict(differing_settings(groups[:2]))
    assert rows == {"total_env_steps": [100, 200]}
    page = several_runs([read_run(r.path) for r in (a, c)], tmp_path)
    Outline(page)
    assert "<td>total_<wbr>env_<wbr>steps</td><td>100</td><td>200</td>" in page


def test_a_resume_that_went_back_replaces_what_came_after(run: WrittenRun):
    for step in (0, 10, 20, 30, 15, 25):
        run.metrics(step, avg_return=float(step))
    record = read_run(run.path)
    assert [s for s, _ in record.series("avg_return")] == [0, 10, 15, 25]


def test_of_records_at_one_step_the_last_counts_and_of_rates_the_first(run: WrittenRun):
    for figure in (1.0, 2.0, 3.0):
        run.metrics(10, avg_return=figure)
    record = read_run(run.path)
    assert record.series("avg_return") == [(10.0, 3.0)]
    assert record.series("avg_return", first=True) == [(10.0, 1.0)]
    run.metrics(20, avg_return=4.0)
    run.metrics(30, avg_return=None)
    assert read_run(run.path).last("avg_return") == 4.0
    assert read_run(run.path).rate("global_step") == pytest.approx(1.0)


def test_stages_count_what_was_cleared(run: WrittenRun):
    for index in range(4):
        common = {"event": "episode_end", "timestamp": 1.0, "episode_return": 5.0, "length": 10}
        run.append("events.jsonl", **common, level="1-2", reason="flag" if index else "death")
        run.append("events.jsonl", **common, level="1-1", reason="death", max_x=100 + index)
    run.append("events.jsonl", event="episode_end", level="1-1", episode_return=None, length=3)
    first, second = training_rows(read_run(run.path))
    assert (first.stage, first.n_episodes, first.cleared.value) == ("1-1", 4, 0.0)
    assert first.max_x.value == 101.5 and second.max_x is None
    assert (second.stage, second.cleared.value) == ("1-2", 0.75)
    assert "75%" in run.text()


def test_a_warp_clears_a_stage_in_training_as_in_evaluations(run: WrittenRun):
    common = {"event": "episode_end", "timestamp": 1.0, "episode_return": 5.0, "length": 10}
    for reason, is_clear in (("terminated", True), ("flag", True), ("death", False)):
        run.append("events.jsonl", **common, level="1-2", reason=reason, is_clear=is_clear)
    (row,) = training_rows(read_run(run.path))
    assert (row.n_episodes, row.cleared.value) == (3, pytest.approx(2 / 3))
    (run.path / "config.yaml").write_text("env: {id: CartPole-v1}")
    run.append("events.jsonl", **common, level="a", reason="terminated", is_clear=None)
    assert training_rows(read_run(run.path))[1].cleared is None


def test_the_newest_evaluation_of_the_run_itself_is_a_table(run: WrittenRun):
    for steps, max_x in ((100, 40), (2_200, 500)):
        played = [
            Episode([], "1-1", total_reward=3.0, length=9, max_x=max_x, is_clear=won, end="x")
            for won in (True, False, False, False)
        ]
        rows = [row_record(row) for row in rows_of(OWN_WAY, played)]
        run.append("events.jsonl", event="evaluation", env_steps=steps, returns=[1.0], rows=rows)
    text = run.text()
    Outline(text)
    assert "The last evaluation of the run itself, after 2,200 env steps." in text
    assert "<td>1-1</td><td>greedy, no-ops</td>" in text
    assert "25%" in text and ">500 " in text and ">40 " not in text


def test_an_older_evaluation_has_its_episodes_for_rows(run: WrittenRun):
    figures = {"returns": [1.0, 3.0, 2.0], "lengths": [4, 6, 5], "max_x": [40, 60, 50]}
    levels, clears = ["1-1", "1-1", "1-2"], [True, False, False]
    event = {"event": "evaluation", "env_steps": 9, "levels": levels, "clears": clears, **figures}
    first, second, every = own_rows(event)
    assert (first.stage, first.n_episodes, first.cleared.value) == ("1-1", 2, 0.5)
    assert (first.max_x.value, first.returns.value, first.lengths.value) == (50.0, 2.0, 5.0)
    assert (second.stage, every.stage, every.n_episodes) == ("1-2", "all", 3)
    run.append("events.jsonl", **event)
    assert "The last evaluation of the run itself, after 9 env steps." in run.text()
    no_goal, _ = own_rows({**event, "levels": ["", "", "x"], "clears": [], "max_x": []})[:2]
    assert no_goal.cleared is None and no_goal.max_x is None
    for damage in ({"returns": [1.0]}, {"levels": 3}, {"lengths": [1, None, 2]}, {"rows": []}):
        assert own_rows({**event, **damage}) == []


def test_waits_are_means_over_time_and_a_pause_counts_little(run: WrittenRun):
    name = "wait_percent/learner/sample"
    for step, percent in ((0, 99.0), (10, 50.0), (20, 50.0), (30, 50.0), (10_030, 0.0)):
        run.metrics(step, **{name: percent, "time_percent/learner/compute": 25.0})
    (compute, sample) = waits_of(read_run(run.path))["learner"]
    assert (compute.name, compute.is_wait, compute.percent) == ("compute", False, 25.0)
    assert (sample.name, sample.is_wait) == ("sample", True)
    assert sample.percent == pytest.approx(50.0 * 30 / 80), "a pause counts five windows"


def test_what_a_process_did_before_its_first_record_makes_no_more_than_a_whole(run: WrittenRun):
    for step in (0, 10, 20, 30):
        started = {"time_percent/prior_engine/start": 240.0} if step == 20 else {}
        run.metrics(
            step, **started, **{"time_percent/replay/start": 60.0, "time_percent/replay/add": 90.0}
        )
    waits = waits_of(read_run(run.path))
    assert [share.percent for share in waits["prior_engine"]] == [80.0]
    assert [share.percent for share in waits["replay"]] == [
        pytest.approx(60.0),
        pytest.approx(40.0),
    ]


def test_the_limiter_has_what_others_leave(run: WrittenRun):
    """What is logged for it is cut off at 0 in each window."""
    for step in (0, 10, 20):
        busy = 150.0 if step == 10 else 10.0
        waits = {"wait_percent/env_actor/limiter": max(0.0, 100.0 - busy)}
        run.metrics(step, **{"time_percent/env_actor/search": busy}, **waits)
    search, limiter = waits_of(read_run(run.path))["env_actor"]
    assert (search.percent, limiter.name, limiter.percent) == (80.0, "limiter", 20.0)


def test_incidents_are_shown_and_hostile_text_stays_text(run: WrittenRun):
    evil = "<script>alert(1)</script>"
    run.metrics(0, avg_return=1.0)
    run.append("events.jsonl", event="child_failed", timestamp=1.7e9, child=evil, cause='"<b>&')
    run.append("events.jsonl", event="adapter_published", accepted=False, reason="gap")
    run.append("events.jsonl", event="adapter_published", accepted=True, reason="fine")
    run.append("events.jsonl", event=evil, something=[1, {"a": evil}])
    run.append("events.jsonl", event="episode_end", level=evil, episode_return=1.0, length=1)
    (run.path / "config.yaml").write_text(f"# {evil}\nseed: 0\n")
    text = run.text()
    Outline(text)
    assert "<script" not in text
    assert text.count("<td>child_failed</td>") == 1 and "&quot;&lt;b&gt;&amp;" in text
    assert text.count("<td>adapter_published</td>") == 1, "the accepted one is no incident"


def test_ordinary_events_do_not_push_crashes_off(run: WrittenRun):
    assert set(QUIET_EVENTS) <= set(ORDINARY)
    run.append("events.jsonl", event="child_failed", timestamp=1.7e9, child="env-actor-3")
    for version in range(MOST_INCIDENTS + 1):
        for kind in QUIET_EVENTS:
            run.append("events.jsonl", event=kind, timestamp=1.7e9, version=version)
    text = run.text()
    assert "<td>child_failed</td>" in text and "<td>weights</td>" not in text
    assert f"weights {MOST_INCIDENTS + 1}" in text, "they are counted"


def test_old_and_half_written_records_leave_gaps_not_errors(run: WrittenRun):
    run.metrics(0, avg_return=1.0)
    run.metrics(5, avg_return=None, loss_total="NaN")
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"global_step": 7}\n[1, 2]\nnonsense\n{"timestamp": 3}\n')
        stream.write('{"global_step": 1e999, "avg_return": 4}\n{"global_step": 9, "avg_ret')
    (run.path / "events.jsonl").write_text('{"event": null}\n{"no": "event"}\n\x00\n')
    (run.path / "summary.json").write_text('{"finished": tr')
    (run.path / "videos").mkdir()
    (run.path / "videos" / "evaluation-x.mp4").write_bytes(b"")
    (run.path / "evaluations").mkdir()
    (run.path / "evaluations" / "a.json").write_text('{"rows": [1, {"returns": 2}]}')
    record = read_run(run.path)
    assert [s for s, _ in record.series("avg_return")] == [0, 5]
    assert (record.n_skipped, record.state) == (3, "ended without a word")
    Outline(run.text())
    assert "3 lines could not be read" in run.text()


def test_a_run_that_failed_says_so_however_much_its_rescue_wrote(run: WrittenRun):
    run.append("events.jsonl", event="failed", timestamp=1.7e9, cause="x")
    for number in range(50):
        run.append("events.jsonl", event="child_state", timestamp=1.7e9 + number)
    assert read_run(run.path).state == "failed"
    run.append("events.jsonl", event="started", timestamp=1.8e9)
    assert read_run(run.path).state == "ended without a word"


def test_an_empty_run_has_a_report(tmp_path):
    (tmp_path / "bare").mkdir()
    text = one_run(read_run(tmp_path / "bare"), tmp_path)
    Outline(text)
    assert "it has no metrics" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = """global_step timestamp update avg_return wait_percent/learner/sample time_percent/x/y
    event level episode_return length max_x reason returns env_steps accepted loss_total
    levels lengths clears rows is_clear versions"""
KEYS = st.sampled_from(re.findall(r"\S+", NAMES))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(KEYS, JSON, max_size=8), max_size=8))
def test_whatever_records_hold_there_is_a_page(tmp_path, records):
    folder = tmp_path / "junk"
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    for name in ("metrics.jsonl", "events.jsonl"):
        (folder / name).write_text(lines)
    (folder / "summary.json").write_text(json.dumps(records[0]) if records else "")
    Outline(one_run(read_run(folder), tmp_path))


def test_best_and_last_episodes_are_part_of_the_page_unless_they_are_large(
    run: WrittenRun,
):
    (run.path / "videos").mkdir()
    for steps, gained in ((100, 1.0), (200, 9.0), (300, 4.0)):
        (run.path / "videos" / f"evaluation-{steps:08d}.mp4").write_bytes(b"film %d" % steps)
        run.append("events.jsonl", event="evaluation", env_steps=steps, returns=[gained, 99.0])
    text = run.text()
    assert "the best: after 200 env steps, return 9.00" in text
    assert "the last: after 300 env steps, return 4.00" in text
    large = run.path / "videos" / "evaluation-00000300.mp4"
    with large.open("r+b") as stream:
        stream.truncate(9 << 20)
    assert Outline(run.text()).sources[-1] == "videos/evaluation-00000300.mp4"


def test_videos_of_many_runs_are_links_where_they_would_be_too_much(tmp_path, monkeypatch):
    runs = [WrittenRun(tmp_path / f"run-{i}") for i in range(4)]
    for number, run in enumerate(runs):
        (run.path / "videos").mkdir()
        film = bytes(1_000 if number else 1_001)
        (run.path / "videos" / "evaluation-00000100.mp4").write_bytes(film)
    monkeypatch.setattr("launch.reports.videos.MOST_BYTES", 8 * 1_000)
    page = several_runs([read_run(run.path) for run in runs], tmp_path)
    sources = Outline(page).sources
    assert sources[0] == "run-0/videos/evaluation-00000100.mp4"
    assert len(sources) == 4 and all(s.startswith("data:video/mp4") for s in sources[1:])


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        report.main(words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_what_is_no_run_is_refused(run: WrittenRun, tmp_path, capsys):
    assert "does not exist" in refused([str(tmp_path / "nothing")], capsys)
    assert "is a file, not a run directory" in refused([str(run.path / "config.yaml")], capsys)
    above = refused([str(run.path), str(tmp_path)], capsys)
    assert "is not a run directory" in above and str(run.path) in above, "names runs inside"
    assert report.main([str(run.path), "--output", str(tmp_path / "no" / "x.html")]) == 1
    assert "can't be written" in capsys.readouterr().err
    for folder in ("", ".", "/", str(tmp_path)):
        assert "is a folder; name a file in it" in refused(
            [str(run.path), "--output", folder], capsys
        )


def test_a_link_to_nothing_among_the_evaluations_is_passed_over(run: WrittenRun, capsys):
    (run.path / "evaluations").mkdir()
    (run.path / "evaluations" / "step-1.json").write_text('{"rows": [], "env_steps": 3}')
    (run.path / "evaluations" / "step-2.json").symlink_to("nowhere")
    assert report.main([str(run.path)]) == 0
    assert read_run(run.path).evaluation["env_steps"] == 3


def test_a_run_that_cannot_be_read_is_not_told_as_one_that_cannot_be_written(
    run: WrittenRun, monkeypatch, capsys
):
    def broken(path: Path):
        raise OSError(errno.EIO, "Input/output error", str(path / "metrics.jsonl"))

    monkeypatch.setattr("launch.reports.page.read_run", broken)
    assert report.main([str(run.path)]) == 1
    told = capsys.readouterr().err
    assert f"{run.path / 'metrics.jsonl'} can't be read: Input/output error" in told


def test_a_good_report_survives_a_write_that_fails(run: WrittenRun, capsys):
    run.metrics(10, avg_return=1.0)
    assert report.main([str(run.path)]) == 0
    good = (run.path / "report.html").read_text()
    assert "up to env step 10" in good
    run.metrics(20, avg_return=2.0)
    (run.path / ".report.html").symlink_to("/dev/full")
    assert report.main([str(run.path)]) == 1
    assert "report.html can't be written: No space left on device" in capsys.readouterr().err
    assert (run.path / "report.html").read_text() == good
    assert not os.path.lexists(run.path / ".report.html")


def test_what_a_killed_writer_left_is_harmless(run: WrittenRun):
    (run.path / ".report.html").write_text("<!doctype html><html><bo")
    assert leave_report(run.path)
    Outline((run.path / "report.html").read_text())
    assert not (run.path / ".report.html").exists()


def test_versions_are_those_of_the_last_start_even_without_a_checkpoint(run: WrittenRun):
    run.append("events.jsonl", event="started", timestamp=1.0, versions={"torch": "1.0"})
    run.append("events.jsonl", event="started", timestamp=2.0, versions={"torch": "2.0"})
    assert read_run(run.path).versions == {"torch": "2.0"}
    assert "<td>torch</td><td>2.0</td>" in run.text()


def test_every_curve_is_of_a_documented_metric():
    """A metric that is renamed would leave its curve empty."""
    page = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
    documented = set(re.findall(r"^\| `([\w/]+)` \|", page.read_text(), re.M))
    curves = [*CURVES, *LEARNING_CURVES, *REPLAY_CURVES]
    drawn = {name for _, _, names in curves for name in names.values()}
    drawn |= {name for _, _, name in COMPARED} | {name for _, name in TILES} | set(RATES)
    drawn |= {name for names in run_view.CURVES.values() for name in names}
    assert len(drawn) > 30
    assert drawn <= documented | set(RECORD_KEYS)


def test_a_report_that_cannot_be_written_is_a_warning(run: WrittenRun, caplog):
    (run.path / "report.html").mkdir()
    assert not leave_report(run.path)
    assert "no report.html (" in caplog.text
    assert f"launch/report.py {run.path}" in caplog.text
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "report.html"]


def test_a_report_that_takes_too_long_is_given_up(run: WrittenRun, caplog):
    """Reading a pipe that nobody writes to hangs for ever, as a dead file server would."""
    pipe = run.path / "events.jsonl"
    os.mkfifo(pipe)
    started = time.monotonic()
    assert not leave_report(run.path, limit_s=0.3)
    assert time.monotonic() - started < 5.0
    assert "it was not ready after 0.3 s" in caplog.text
    assert not (run.path / "report.html").exists()
    thread = next(t for t in threading.enumerate() if t.name == "report")
    pipe.open("wb").close()  # lets it go
    thread.join(10.0)
