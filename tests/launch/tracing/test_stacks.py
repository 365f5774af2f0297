"""Stacks of other processes, and what can be read from them."""

import ast
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

import launch
from launch.control.capacity import ROLES
from launch.control.runtime import Child
from launch.tracing.in_flight import InFlight
from launch.tracing.stacks import WAITS, own_stacks, stacks_of, waits_for
from launch.tracing.trace_file import DEADLINE, MOST_FILES, TraceFiles

PROGRAM = """
import time
def wait_for_ever():
    print("here", flush=True)
    time.sleep(600)
wait_for_ever()
"""


def test_a_file_has_stacks_of_the_process_concerned_and_of_the_driver(tmp_path):
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"here\n"
            child = Child("learner", "learner", None, pid=process.pid)
            idle = Child("evaluator", "evaluator", None)
            in_flight = InFlight()
            in_flight.begin(child, "train", 10.0)
            in_flight.begin(child, "train", 11.0)
            trace = TraceFiles(tmp_path).write(
                DEADLINE, "learner is late", child, [child, idle], in_flight.work(), 15.0
            )
        finally:
            process.kill()
    text = (tmp_path / trace.file).read_text()
    assert text.startswith("learner is late\n")
    assert "learner: train for 5.0 s, 1 more asked for" in text
    assert "evaluator: has nothing to do" in text
    is_permitted = "no stacks:" not in text
    assert not is_permitted or "wait_for_ever" in text
    assert is_permitted or "ptrace_scope" in text or "py-spy did not answer" in text
    assert "test_a_file_has_stacks" in text  # of this process


def test_files_do_not_pile_up(tmp_path):
    child = Child("learner", "learner", None)
    seconds = iter([*range(MOST_FILES), MOST_FILES, MOST_FILES, MOST_FILES])
    files = TraceFiles(tmp_path, clock=lambda: float(next(seconds)))
    names = [files.write(DEADLINE, "late", child, [], [], 0.0).file for _ in range(MOST_FILES + 3)]
    assert len(set(names)) == len(names)
    assert {path.name for path in tmp_path.iterdir()} == set(names[3:])


def test_a_folder_that_is_gone_costs_the_file_only(tmp_path):
    child = Child("learner", "learner", None)
    assert TraceFiles(tmp_path / "gone").write(DEADLINE, "late", child, [], [], 0.0).file == ""


def test_a_process_that_is_gone_is_a_reason_not_an_error():
    pid = next(pid for pid in range(4_000_000, 5_000_000) if not psutil.pid_exists(pid))
    assert stacks_of(pid).startswith("no stacks:")


def test_every_thread_is_named():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="a-thread-that-waits")
    thread.start()
    text = own_stacks()
    stop.set()
    thread.join()
    assert "thread a-thread-that-waits" in text and "thread MainThread" in text


def test_stacks_tell_for_whom_a_process_waits():
    for name in ("next", "RayBatchSource.next"):
        frames = (
            f"    {name} (replay_service/replay_actor.py:9)\n    train (learner/learner.py:1)\n"
        )
        assert waits_for("Thread 1 (idle)\n" + frames) == "replay"
    assert waits_for("    next (some/other.py:1)\n    update (learner/learner.py:2)") == ""


def test_whoever_is_known_to_wait_still_has_that_function():
    """A rename would make every wait of its kind unknown, and nothing else would tell."""
    root = Path(launch.__file__).parents[1]
    for function, file, whom in WAITS:
        tree = ast.parse((root / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in defined, (function, file)
        assert whom in ROLES


def test_processes_below_are_looked_into_too():
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", program, PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"here\n"
            text = stacks_of(process.pid)
        finally:
            for below in psutil.Process(process.pid).children():
                below.kill()
            process.kill()
    assert "wait_for_ever" in text or "no stacks:" in text


def test_work_is_counted_without_the_time_in_a_queue():
    child, in_flight = Child("replay-0", "replay", None, pid=os.getpid()), InFlight()
    first, second = (in_flight.begin(child, "add", at) for at in (0.0, 1.0))
    assert first.is_first and second.is_first
    assert in_flight.end(first, 4.0) == 4.0
    (work,) = in_flight.work()
    assert work.ask is second and work.since == 4.0 and work.n_queued == 0
    assert in_flight.end(second, 6.0) == 2.0
    assert not in_flight.begin(child, "add", 7.0).is_first
    in_flight.forget(child)
    assert in_flight.work() == []
    assert in_flight.begin(child, "add", time.monotonic()).is_first  # another process
