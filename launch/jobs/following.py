"""A submitted job as seen from outside: its log while it grows, its state, its exit code."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TextIO

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from requests import RequestException

from launch.control.shutdown import EXIT_FAILED
from launch.jobs.connection import JobError
from launch.jobs.environment import EXIT_LINE

PATIENCE_S = 60.0  # for a job server that does not answer; the job goes on meanwhile
PAUSE_S = 1.0
_EXIT_LINES = re.compile(f"^{re.escape(EXIT_LINE)}(\\d+)$", re.MULTILINE)
# Whatever the way to the server or the server itself does, in both of Ray's client libraries.
_LOST = (RequestException, aiohttp.ClientError, RuntimeError, OSError)


class JobLost(Exception):
    """Nothing is heard of a job any more; it may be going on."""


def job_info(client: JobSubmissionClient, job: str) -> JobDetails:
    """Raises JobError for an unknown one, naming those that there are."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "status code 404" not in str(error):
            raise
        known = sorted(filter(None, (each.submission_id for each in client.list_jobs())))
        there = f"there are: {', '.join(known)}" if known else "it has had none"
        raise JobError(f"{client.get_address()} has no job {job!r}; {there}") from error


class LogCopy:
    """Copies a job's log to `out`; may be broken off and begun again any number of times."""

    def __init__(self, client: JobSubmissionClient, job: str, out: TextIO) -> None:
        self.n_written = 0  # characters
        self.n_read = 0  # characters of the current attempt: the server begins at the beginning
        self._client = client
        self._job = job
        self._out = out

    async def run(self) -> None:
        """Until the log ends. Raises what the way to the server raises."""
        self.n_read = 0
        async for text in self._client.tail_job_logs(self._job):
            self._out.write(text[max(self.n_written - self.n_read, 0) :])
            self._out.flush()
            self.n_read += len(text)
            self.n_written = max(self.n_written, self.n_read)


def follow(client: JobSubmissionClient, job: str, out: TextIO) -> None:
    """Copies the job's log to `out` until the job has ended.

    A copy that breaks off goes on where it was; JobLost once there was no answer for PATIENCE_S.
    """
    copy = LogCopy(client, job, out)
    heard_at = time.monotonic()
    while True:
        try:
            asyncio.run(copy.run())
            if job_info(client, job).status.is_terminal():
                return
            heard_at = time.monotonic()
        except _LOST as error:
            if copy.n_read:  # it was there until now, however long it had nothing to say
                heard_at = time.monotonic()
            if time.monotonic() - heard_at > PATIENCE_S:
                raise JobLost(
                    f"job {job} was not heard of for {PATIENCE_S:.0f} s ({error}); it may be "
                    "going on: ask again with `logs`"
                ) from error
        time.sleep(PAUSE_S)


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """Of a job that has ended, as a shell would count it.

    Ray keeps none of a job that it stopped, so that one is read from its log: EXIT_FAILED if the
    job did not get to write it.
    """
    info = job_info(client, job)
    if info.driver_exit_code is not None:
        code = info.driver_exit_code
        return code if code >= 0 else 128 - code  # by a signal
    if info.status == JobStatus.STOPPED:
        written = _EXIT_LINES.findall(client.get_job_logs(job))
        return int(written[-1]) if written else EXIT_FAILED
    return EXIT_FAILED
