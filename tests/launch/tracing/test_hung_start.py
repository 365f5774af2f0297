"""A real actor that hangs before it has told its process: its stacks are taken all the same."""

import os
import time
from pathlib import Path

import psutil
import pytest

from launch.control.ray_runtime import RayRuntime
from launch.control.runtime import CallFailed, Resources
from launch.tracing.config import TraceConfig
from launch.tracing.watched_runtime import WatchedRuntime


class Hanging:
    def __init__(self, mark: Path) -> None:
        self.hang_in_the_constructor(mark)

    def hang_in_the_constructor(self, mark: Path) -> None:
        mark.touch()
        time.sleep(600)

    def ping(self) -> int:
        return os.getpid()


def test_a_constructor_that_hangs_is_seen_in_its_stacks(tmp_path):
    ray_runtime, events = RayRuntime("local", num_cpus=1.0, num_gpus=0.0), []
    try:
        runtime = WatchedRuntime(ray_runtime, TraceConfig(), tmp_path, 1.0)
        mark = tmp_path / "mark"
        child = runtime.start("learner", "learner", Hanging, {"mark": mark}, Resources())
        started_by = time.monotonic() + 120.0
        while not mark.exists() and time.monotonic() < started_by:
            time.sleep(0.1)
        pid = ray_runtime.pid_of(child)
        assert psutil.pid_exists(pid) and child.pid == 0
        call = runtime.call(child, "ping", deadline_s=1.0)
        with runtime.watching(lambda kind, **fields: events.append(fields), lambda line: None):
            while not runtime.wait([call], 0.5):
                pass
            with pytest.raises(CallFailed, match="no answer within 1 s"):
                runtime.value(call)
    finally:
        ray_runtime.shutdown()
    (fields,) = events
    text = (tmp_path / fields["file"]).read_text()
    assert f"stacks of learner:\nprocess {pid}\n" in text
    assert "hang_in_the_constructor" in text or "no stacks:" in text  # where py-spy may not look
