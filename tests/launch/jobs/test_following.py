"""A job's log through a way that breaks off, and the exit codes that Ray does and does not keep."""

import asyncio
import io
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobStatus

from launch.jobs import following
from launch.jobs.connection import JobError
from launch.jobs.following import JobLost, exit_code, follow, job_info


class Server:
    """Sends `log` from its beginning each time, in chunks, and breaks off after `breaks[i]`."""

    def __init__(self, log: str, chunk: int, breaks: list[int], **info: object) -> None:
        self.log, self.chunk, self.breaks = log, chunk, list(breaks)
        self.info = SimpleNamespace(**{"driver_exit_code": None, "message": None} | info)

    async def tail_job_logs(self, job: str):
        until = self.breaks.pop(0) if self.breaks else None
        for at in range(0, len(self.log), self.chunk):
            if until is not None and at >= until:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield self.log[at : at + self.chunk]

    def get_job_info(self, job: str) -> SimpleNamespace:
        if job == "nope":
            raise RuntimeError("Request failed with status code 404: Job nope does not exist.")
        return self.info

    def get_job_logs(self, job: str) -> str:
        return self.log

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=name) for name in ("b", None, "a")]

    def get_address(self) -> str:
        return "http://head:8265"


@pytest.fixture(autouse=True, scope="module")
def without_pauses():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "PAUSE_S", 0.0)
        yield


@given(
    log=st.text(max_size=60),
    chunk=st.integers(1, 9),
    breaks=st.lists(st.integers(0, 60), max_size=4),
)
def test_whatever_breaks_off_the_log_is_shown_once_and_whole(log, chunk, breaks):
    out = io.StringIO(newline="")
    follow(Server(log, chunk, breaks, status=JobStatus.SUCCEEDED), "job", out)
    assert out.getvalue() == log


def test_a_server_that_stays_away_is_given_up(monkeypatch):
    monkeypatch.setattr(following, "PATIENCE_S", 0.2)
    server = Server("some text", 1, [4] + [0] * 100_000, status=JobStatus.RUNNING)
    began = time.monotonic()
    with pytest.raises(JobLost, match="may be going on"):
        follow(server, "job", io.StringIO())
    assert time.monotonic() - began >= 0.2


def test_a_log_that_was_silent_for_long_is_taken_up_again(monkeypatch):
    """What counts is how long there was no answer, not how long there was no text."""
    monkeypatch.setattr(following, "PATIENCE_S", 0.05)

    class Slow(Server):
        async def tail_job_logs(self, job: str):
            async for text in super().tail_job_logs(job):
                yield text
                await asyncio.sleep(0.1)

    out = io.StringIO()
    follow(Slow("abc", 3, [3], status=JobStatus.SUCCEEDED), "job", out)
    follow(Slow("abc", 2, [2], status=JobStatus.SUCCEEDED), "job", out)
    assert out.getvalue() == "abcabc"


STOPPED = {"status": JobStatus.STOPPED}


@pytest.mark.parametrize(
    ("info", "log", "code"),
    [
        ({"status": JobStatus.SUCCEEDED, "driver_exit_code": 0}, "", 0),
        ({"status": JobStatus.FAILED, "driver_exit_code": 75}, "", 75),
        ({"status": JobStatus.FAILED, "driver_exit_code": -9}, "", 137),
        ({"status": JobStatus.FAILED}, "[job] exit code 0\n", 1),  # its node went, say
        (STOPPED, "[train] x\n[job] exit code 75\n", 75),
        (STOPPED, "[job] exit code 0 it says\n[job] exit code 1\n", 1),
        (STOPPED, "killed before it could say anything", 1),
    ],
)
def test_exit_codes(info, log, code):
    assert exit_code(Server(log, 1, [], **info), "job") == code


def test_an_unknown_job_is_told_from_those_that_there_are():
    with pytest.raises(JobError, match=r"head:8265 has no job 'nope'; there are: a, b$"):
        job_info(Server("", 1, []), "nope")
