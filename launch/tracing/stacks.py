"""What the threads of this process and of others on this machine are doing, as text."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import traceback
from pathlib import Path

PY_SPY_LIMIT_S = 5.0
# Where a child of ours waits for another: function, end of the file's path, role of that other.
WAITS = (
    ("next", "replay_service/replay_actor.py", "replay"),
    ("next", "replay_service/sharded_replay_actor.py", "replay"),
    ("next", "learner/language/language_learner_actor.py", "replay"),
    ("_answers", "replay_service/replay_actor.py", "replay"),
    ("collect", "actors/prior/client.py", "prior_engine"),
    ("result", "actors/search_actor.py", "search"),
    ("pull_if_newer", "learner/weight_server_actor.py", "weight_server"),
    ("push", "learner/weight_server_actor.py", "weight_server"),
    ("published_version", "learner/weight_server_actor.py", "weight_server"),
)
_FRAME = re.compile(r"^\s+(?P<function>\S+) \((?P<file>[^()]+):\d+\)$", re.M)


def own_stacks() -> str:
    """All threads of this process, the newest call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}\n")
        parts += traceback.format_stack(frame)
    return "".join(parts)


def stacks_of(pid: int) -> str:
    """All threads of another Python process on this machine and of those that it started, by
    py-spy, or why there are none.
    """
    command = find_py_spy()
    if command is None:
        return "no stacks: py-spy is not installed (pip install py-spy)\n"
    try:
        done = _run(command, "dump", "--pid", str(pid), "--subprocesses")
        if done.returncode:  # py-spy before 0.4, or one of them is none of Python's
            done = _run(command, "dump", "--pid", str(pid))
    except subprocess.TimeoutExpired:
        return f"no stacks: py-spy did not answer within {PY_SPY_LIMIT_S:g} s\n"
    except OSError as error:
        return f"no stacks: {command} can't be run: {error.strerror}\n"
    if done.returncode == 0:
        return done.stdout
    said = " ".join((done.stderr or done.stdout).split())[:300]
    return (
        f"no stacks: py-spy may not or can't look into process {pid}: {said}\n"
        "it needs root, the capability SYS_PTRACE, or kernel.yama.ptrace_scope=0\n"
    )


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=PY_SPY_LIMIT_S
    )


def find_py_spy() -> str | None:
    """The one of this environment first."""
    beside = Path(sysconfig.get_path("scripts")) / "py-spy"
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def waits_for(stacks: str) -> str:
    """The role of whom a process with these `stacks` of py-spy waits for; empty if none is seen.

    >>> waits_for("    RayBatchSource.next (/x/replay_service/replay_actor.py:145)")
    'replay'
    """
    for frame in _FRAME.finditer(stacks):
        name = frame["function"].rpartition(".")[2]  # with its class from Python 3.11 on
        for function, file, whom in WAITS:
            if name == function and frame["file"].endswith(file):
                return whom
    return ""
