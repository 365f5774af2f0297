"""A small real run that may be killed piece by piece, and what its files say of it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 420.0
SMALL = shlex.split(
    """--preset cartpole --device cpu --simulations 6 --acting.num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --replay.min-positions 40
    --replay.num-shards 2 --learner.batch-size 16 --limiter.samples-per-insert 8
    --evaluation.every-env-steps 400 --evaluation.n-episodes 1 --evaluation.max-steps 50
    --control.checkpoint-every-env-steps 200 --control.log-period-s 1
    --control.max-restarts 100000 --total-env-steps 100000000"""
)
# Every kind of process at work, on the real game and with vLLM.
MARIO = shlex.split(
    """--preset mario-quick --device cpu --simulations 8 --acting.segment-length 20
    --replay.min-positions 120 --replay.capacity-mb 12 --replay.text-mb 1
    --learner.batch-size 16 --limiter.samples-per-insert 4 --reanalysis.share 0.2
    --evaluation.every-env-steps 400 --evaluation.n-episodes 1 --evaluation.max-steps 40
    --control.checkpoint-every-env-steps 400 --control.log-period-s 1
    --schedule.wm-train-freq 16 --language.publish-every 1
    --total-env-steps 100000000"""
)
EXIT_RESUMABLE = 75


class RunStuck(AssertionError):
    """What was waited for did not happen; the message ends with the run's output."""


class RealRun:
    """The run of one folder, started and started again."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        settings: Sequence[str] = SMALL,
        script: str = "launch/train.py",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`arguments` come after `settings`; `script` takes the words of launch/train.py.

        variables: of the environment, in addition
        """
        self.folder = folder
        self._variables = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"} | dict(
            variables or {}
        )
        self._command = [script, *settings, *arguments, "--run-dir", str(folder)]
        self.process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def start(self, *changes: str) -> None:
        """`changes`: words for this start alone."""
        self._started_at = time.time()
        with self.folder.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._command, *changes],
                cwd=ROOT,
                env=os.environ | self._variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=LIMIT_S)

    def finish(self) -> int:
        """Waits for the run to end by itself; the exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise RunStuck(f"the run did not end:\n{self.output()[-4000:]}") from error

    def kill(self) -> None:
        """At once, with all processes below it; nothing happens if it has ended."""
        if self.process is None or not self.is_running():
            return
        for below in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                below.kill()
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        return self.folder.with_suffix(".log").read_text()

    def metrics(self) -> dict[str, float]:
        """The newest record; {} before the first."""
        lines = self._lines("metrics.jsonl")
        return json.loads(lines[-1]) if lines else {}

    def every(self, name: str) -> list[float]:
        """One figure in all records that have it."""
        return [r[name] for r in self.records() if r.get(name) is not None]

    def records(self, since: float = 0.0) -> list[dict[str, float]]:
        """Those written after the time `since`, oldest first."""
        found = map(json.loads, self._lines("metrics.jsonl"))
        return [record for record in found if record["timestamp"] > since]

    def events(self, kind: str, since: float = 0.0) -> list[dict]:
        found = map(json.loads, self._lines("events.jsonl"))
        return [e for e in found if e["event"] == kind and e["timestamp"] > since]

    def heartbeats(self) -> dict[str, dict]:
        """By process, as the newest line has them; {} before the first since the start."""
        lines = self._lines("heartbeat.jsonl")
        newest = json.loads(lines[-1]) if lines else {"timestamp": 0.0}
        return newest["processes"] if newest["timestamp"] > self._started_at else {}

    def pids(self) -> dict[str, int]:
        """Of the children, by name."""
        children = {name: beat for name, beat in self.heartbeats().items() if name != "driver"}
        return {name: beat["pid"] for name, beat in children.items() if beat["pid"]}

    def wait_until(self, condition: Callable[[], object], what: str) -> float:
        """Seconds until `condition` held. RunStuck after LIMIT_S, or when the run has ended."""
        started = time.monotonic()
        while not condition():
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() - started > LIMIT_S:
                why = "the run ended" if ended else f"{LIMIT_S:.0f} s went by"
                raise RunStuck(f"{why} while waiting for {what}:\n{self.output()[-4000:]}")
            time.sleep(0.1)
        return time.monotonic() - started

    def _lines(self, name: str) -> list[str]:
        """Whole lines only: the last one may be half written."""
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()
