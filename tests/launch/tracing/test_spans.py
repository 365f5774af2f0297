"""Spans of processes and what they become in a Chrome trace."""

import asyncio
import inspect
import json
import time

import cloudpickle
from hypothesis import given
from hypothesis import strategies as st

from launch.tracing.spans import WINDOW_FILE, Span, SpanFile, chrome_trace, in_rows, profiled
from replay_service.stage_times import add_seconds


class Worker:
    """Has stages, fails when told so, and serves calls side by side."""

    def __init__(self, size: int) -> None:
        self.size = size

    def work(self, n: int) -> int:
        add_seconds({}, "inner", time.perf_counter())
        if n < 0:
            raise ValueError("negative")
        return n * self.size

    async def serve(self) -> int:
        await asyncio.sleep(0.02)
        return self.size


def open_window(folder, seconds: float) -> None:
    now = time.time()
    (folder / WINDOW_FILE).write_text(json.dumps({"begin": now, "end": now + seconds}))


def spans_of(folder) -> list[dict]:
    return [e for e in chrome_trace(folder)["traceEvents"] if e["ph"] == "X"]


def test_a_profiled_class_does_the_same_and_writes_within_the_window_only(tmp_path):
    factory = cloudpickle.loads(cloudpickle.dumps(profiled(Worker, "worker", tmp_path)))
    assert inspect.signature(factory.work) == inspect.signature(Worker.work)
    worker = factory(size=3)
    assert worker.work(2) == 6 and not list(tmp_path.iterdir())

    open_window(tmp_path, 60.0)
    assert worker.work(4) == 12

    async def both():
        return await asyncio.gather(worker.serve(), worker.serve())

    assert asyncio.run(both()) == [3, 3]
    try:
        worker.work(-1)
    except ValueError as error:
        assert str(error) == "negative"
    names = [event["name"] for event in spans_of(tmp_path)]
    assert sorted(names) == ["inner", "inner", "serve", "serve", "work", "work"]

    other = factory(size=1)
    open_window(tmp_path, -1.0)
    other.work(1)
    assert len(spans_of(tmp_path)) == len(names)


def test_a_trace_passes_over_what_a_killed_process_left(tmp_path):
    open_window(tmp_path, 60.0)
    spans, now = SpanFile(tmp_path, "learner"), time.perf_counter()
    spans.add("train", now, now + 0.5)
    spans.flush()
    with (tmp_path / "learner.jsonl").open("a") as file:
        file.write('["train", 17')
    (tmp_path / "replay-0.jsonl").write_text("")
    trace = json.loads(json.dumps(chrome_trace(tmp_path)))
    (span,) = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert span["name"] == "train" and abs(span["dur"] - 5e5) < 1.0
    titles = [event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"]
    assert titles[0].startswith("learner (process ") and titles[1] == "replay-0"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 1)), max_size=25))
def test_spans_of_a_row_nest_or_follow_each_other(drawn):
    spans = [Span("call", float(began), float(seconds), thread) for began, seconds, thread in drawn]
    placed = in_rows(spans)
    assert sorted(map(repr, spans)) == sorted(repr(span) for _, span in placed)
    for i, (row, a) in enumerate(placed):
        for other, b in placed[i + 1 :]:
            if row == other:
                assert a.thread == b.thread
                apart = b.began >= a.ended
                inside = a.began <= b.began and b.ended <= a.ended
                assert apart or inside, (a, b)
