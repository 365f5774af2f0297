"""The watched runtime around the serial one, with children that take their time."""

import io
import json
import threading
import time
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from launch.control.runtime import Call, CallFailed, Resources
from launch.control.serial_runtime import SerialRuntime
from launch.monitoring.live_table import LiveTable
from launch.tracing import profile
from launch.tracing.config import TraceConfig
from launch.tracing.watched_runtime import WatchedRuntime
from tests.monitoring.metrics_page import documented_fields


@dataclass
class Report:
    seconds: dict[str, float] = field(default_factory=dict)


class Slow:
    """Trains for as long as it is told."""

    def train(self, seconds: float) -> Report:
        time.sleep(seconds)
        return Report({"compute": seconds})


class Mute(SerialRuntime):
    """Its children never answer."""

    name = "mute"

    def call(self, child, method, *args, deadline_s, with_payload=False) -> Call:
        return Call(child, method, self.now(), deadline_s, answer=None, args=args)

    def value(self, call: Call) -> object:
        raise CallFailed(call, "no answer within 0 s")


def train(runtime: WatchedRuntime, child, seconds: float) -> None:
    call = runtime.call(child, "train", seconds, deadline_s=10.0)
    for ready in runtime.wait([call], 0.1):
        runtime.value(ready)


def told(events: list) -> object:
    return lambda kind, **fields: events.append((kind, fields))


def test_slow_steps_leave_stacks_taken_while_they_are_slow(tmp_path):
    config = TraceConfig(slow_step_s=0.2, slow_steps=2, window_s=60.0)
    runtime, events = WatchedRuntime(SerialRuntime(), config, tmp_path, 0.0), []
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        train(runtime, child, 0.5)  # the first of its kind does not count
        train(runtime, child, 0.0)
        train(runtime, child, 0.5)
        assert not list(tmp_path.glob("slow_step_trace_*.log"))
        train(runtime, child, 0.5)
        train(runtime, child, 0.5)  # in the same window
    ((kind, fields),) = events
    assert kind == "slow_step_trace"
    assert fields["child"] == "learner" and fields["method"] == "train"
    (path,) = tmp_path.glob("slow_step_trace_*.log")
    assert path.name == fields["file"]
    text = path.read_text()
    assert "learner has taken" in text and "time.sleep(seconds)" in text
    times = json.loads((tmp_path / "timings.json").read_text())
    seconds, n_calls = times["processes"]["learner"]["stages"]["train"]
    assert seconds == pytest.approx(2.0) and n_calls == 5
    assert 0.0 < times["processes"]["driver"]["stages"]["work"][0] < times["wall_s"] - 1.9


def test_without_a_threshold_nothing_is_watched(tmp_path):
    runtime, events = WatchedRuntime(SerialRuntime(), TraceConfig(), tmp_path, 0.0), []
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        for _ in range(4):
            train(runtime, child, 0.05)
    assert events == [] and [p.name for p in tmp_path.iterdir()] == ["timings.json"]


def test_a_missed_deadline_leaves_stacks_and_says_who_waits_for_whom(tmp_path):
    runtime, events = WatchedRuntime(Mute(), TraceConfig(), tmp_path, 0.0), []
    child = runtime.start("env-actor-0", "env_actor", Slow, {}, Resources())
    call = runtime.call(child, "train", 1.0, deadline_s=0.0)
    other = runtime.call(child, "train", 1.0, deadline_s=0.0)
    with runtime.watching(told(events), lambda line: None):
        for late in (call, other):
            with pytest.raises(CallFailed):
                runtime.value(late)
    ((kind, fields),) = events  # one file for all that are late at once
    assert kind == "deadline_trace"
    assert (fields["who"], fields["waits_for"]) == ("driver", "env-actor-0")
    text = (tmp_path / fields["file"]).read_text()
    assert "for env-actor-0 to answer train, which may take 0 s" in text
    assert "env-actor-0: train for" in text and "1 more asked for" in text


def test_a_serial_call_that_outlives_its_deadline_leaves_stacks_while_it_runs(tmp_path, caplog):
    runtime, events = WatchedRuntime(SerialRuntime(), TraceConfig(), tmp_path, 0.0), []
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        runtime.call(child, "train", 0.9, deadline_s=30.0)
        assert not list(tmp_path.glob("deadline_trace_*.log"))
        runtime.call(child, "train", 2.0, deadline_s=0.1)
        (path,) = tmp_path.glob("deadline_trace_*.log")
    ((kind, fields),) = events
    assert (kind, fields["file"], fields["who"]) == ("deadline_trace", path.name, "driver")
    assert (fields["waits_for"], fields["method"]) == ("learner", "train")
    assert "time.sleep(seconds)" in path.read_text(), "taken while it ran"
    assert str(path) in caplog.text, "the driver may never come back to write the event"


def test_a_serial_call_that_raised_is_under_way_no_more(tmp_path):
    runtime = WatchedRuntime(SerialRuntime(), TraceConfig(), tmp_path, 0.0)
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    watching = runtime.watching(lambda kind, **fields: None, lambda line: None)
    with watching, pytest.raises(TypeError):
        runtime.call(child, "train", "no number", deadline_s=10.0)
    times = json.loads((tmp_path / "timings.json").read_text())
    assert "work" not in times["processes"]["learner"]


def test_events_of_traces_have_the_fields_that_are_documented(tmp_path):
    config = TraceConfig(slow_step_s=0.05, slow_steps=1, window_s=60.0)
    runtime, events = WatchedRuntime(SerialRuntime(), config, tmp_path, 0.0), []
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        train(runtime, child, 0.0)
        runtime.call(child, "train", 1.3, deadline_s=0.1)
    assert {kind for kind, _ in events} == {"slow_step_trace", "deadline_trace"}
    for kind, fields in events:
        assert set(fields) == documented_fields(kind)


def test_a_profile_covers_the_window_after_the_first_updates(tmp_path):
    config = TraceConfig(profile=True, profile_s=1.0)
    runtime, events = WatchedRuntime(SerialRuntime(), config, tmp_path, 0.0), []
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        for _ in range(15):
            train(runtime, child, 0.1)
    assert events == [("profile_written", {"file": "profile.json"})]
    trace = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    spans = [event for event in trace if event["ph"] == "X"]
    assert {event["name"] for event in spans} == {"train"}
    assert 2 <= len(spans) <= 12  # from 0.1 s on, for 1 s, on a machine that may be busy
    assert not (tmp_path / "profile").exists()


class Beside(SerialRuntime):
    """Children that work in threads of their own."""

    name = "beside"

    def call(self, child, method, *args, deadline_s, with_payload=False) -> Call:
        worker = threading.Thread(target=child.handle.train, args=args, daemon=True)
        worker.start()
        return Call(child, method, self.now(), deadline_s, answer=worker, args=args)

    def value(self, call: Call) -> object:
        call.answer.join()
        return Report()


def test_a_profile_waits_for_a_call_that_the_end_of_the_window_found_under_way(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(profile, "GRACE_S", 0.1)
    config = TraceConfig(profile=True, profile_s=0.5)
    runtime, events = WatchedRuntime(Beside(), config, tmp_path, 0.0), []
    learner = runtime.start("learner", "learner", Slow, {}, Resources())
    actor = runtime.start("env-actor-0", "env_actor", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        runtime.value(runtime.call(learner, "train", 0.0, deadline_s=9.0))  # opens the window
        long = runtime.call(actor, "train", 1.0, deadline_s=9.0)
        time.sleep(0.7)  # longer than window and grace
        runtime.wait([long], 0.0)
        assert events == []
        runtime.value(long)
        runtime.wait([], 0.0)
        assert events == [("profile_written", {"file": "profile.json"})]
    trace = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    rows = {e["pid"]: e["args"]["name"].split()[0] for e in trace if e["ph"] == "M"}
    found = {(rows[e["pid"]], e["name"]) for e in trace if e["ph"] == "X"}
    assert ("env-actor-0", "train") in found


def test_a_profile_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "GRACE_S", 0.0)
    monkeypatch.setattr(profile, "LONGEST_GRACE_S", 0.1)
    config = TraceConfig(profile=True, profile_s=0.1)
    runtime, events = WatchedRuntime(Beside(), config, tmp_path, 0.0), []
    learner = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        runtime.value(runtime.call(learner, "train", 0.0, deadline_s=9.0))
        hung = runtime.call(learner, "train", 9.0, deadline_s=9.0)
        time.sleep(0.25)
        runtime.wait([hung], 0.0)
        assert events == [("profile_written", {"file": "profile.json"})]


def test_a_run_that_never_trained_says_that_it_leaves_no_profile(tmp_path):
    runtime, events = WatchedRuntime(SerialRuntime(), TraceConfig(profile=True), tmp_path, 0.0), []
    with runtime.watching(told(events), lambda line: None):
        runtime.wait([], 0.0)
    ((kind, fields),) = events
    assert kind == "profile_not_written" and "there were none" in fields["cause"]


def test_a_profile_that_cannot_be_written_costs_nothing_else(tmp_path, caplog):
    (tmp_path / "profile").write_text("in the way of the folder")
    config = TraceConfig(profile=True, profile_s=0.1)
    runtime, events = WatchedRuntime(SerialRuntime(), config, tmp_path, 0.0), []
    child = runtime.start("learner", "learner", Slow, {}, Resources())
    with runtime.watching(told(events), lambda line: None):
        for _ in range(3):
            train(runtime, child, 0.05)
    assert events == [] and "cannot write a profile" in caplog.text


def test_a_long_checkpoint_is_shown_on_a_terminal_while_it_is_written(tmp_path):
    """As in a Ray run, whose calls go on while the driver waits."""

    class Late(Mute):
        seconds = 0.0

        def now(self) -> float:
            return self.seconds

        def wait(self, calls, timeout_s):
            return []

    plain = Late()
    runtime = WatchedRuntime(plain, TraceConfig(), tmp_path, 0.0)
    child = runtime.start("replay-0", "replay", Slow, {}, Resources())
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "frames").write_bytes(bytes(3_000_000))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with LiveTable("run", console) as table, runtime.watching(told([]), table.busy):
        call = runtime.call(child, "save", str(tmp_path / "checkpoint"), None, deadline_s=900.0)
        runtime.wait([call], 0.1)
        assert "saves" not in stream.getvalue()
        plain.seconds = 42.0
        runtime.wait([call], 0.1)
    assert "replay-0 saves its part of a checkpoint, 42 s, 3 MB" in stream.getvalue()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slow_step_s": -1.0}, "trace.slow_step_s must lie in"),
        ({"slow_step_s": float("nan")}, "trace.slow_step_s"),
        ({"slow_steps": 0}, "trace.slow_steps must be at least 1, got 0"),
        ({"window_s": 0.0}, "trace.window_s must lie in"),
        ({"profile_s": float("inf")}, "trace.profile_s must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        TraceConfig(**settings)
