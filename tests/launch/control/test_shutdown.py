"""Requests to stop, by the clock and by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from launch.control.call_book import CallBook, RunFailed
from launch.control.runtime import Child
from launch.control.serial_runtime import SerialRuntime
from launch.control.shutdown import EXIT_INTERRUPTED, StopRequest


def test_the_clock_asks_once_its_time_is_up():
    now = [100.0]
    stop = StopRequest(max_hours=0.5, clock=lambda: now[0])
    now[0] += 1799.0
    assert not stop.requested
    now[0] += 1.0
    assert stop.requested and stop.reason == "control.max_hours=0.5"


def test_without_a_limit_the_clock_never_asks():
    now = [0.0]
    stop = StopRequest(clock=lambda: now[0])
    now[0] = 1e12
    assert not stop.requested


PROGRAM = """
import os, signal
from launch.control.shutdown import StopRequest
stop = StopRequest({hours}, clock=iter([0.0] + [9e9] * 9).__next__)
stop.install()
assert bool({hours}) == stop.requested
os.kill(os.getpid(), {signal})
assert stop.requested
print(stop.reason, flush=True)
os.kill(os.getpid(), {signal})
print("still here", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hours", [0.0, 0.5], ids=["by signal", "by the clock"])
def test_the_first_signal_asks_and_the_second_leaves(number, hours):
    """A signal after the clock has asked is the first one: schedulers send it at their limit."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(signal=int(number), hours=hours)],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == EXIT_INTERRUPTED, done.stderr
    assert done.stdout.strip() == ("control.max_hours=0.5" if hours else number.name)
    assert "ending in a checkpoint" in done.stderr


class Slow:
    """Answers when the runtime is asked often enough."""

    def work(self) -> str:
        return "done"


class NeverReady(SerialRuntime):
    """A child that does not answer: calls become ready by their deadline only, as Ray's do."""

    def wait(self, calls, timeout_s):
        self.deadlines = [call.deadline_s for call in calls]
        return list(calls)


def test_a_budget_bounds_all_that_is_asked_for_and_never_grows():
    runtime = NeverReady()
    calls = CallBook(runtime, deadline_s=50.0)
    child = Child("slow", "slow", Slow())
    assert calls.ask(child, "work") == "done" and runtime.deadlines == [300.0]
    calls.hurry(20.0)
    calls.hurry(1_000.0)
    calls.ask(child, "work")
    assert 0.0 < runtime.deadlines[0] <= 20.0
    assert 0.0 < calls.seconds_left <= 20.0


def test_a_failure_is_sound_unless_it_says_otherwise():
    assert RunFailed("learner died").is_state_sound
    assert not RunFailed("the loss is not finite", is_state_sound=False).is_state_sound
