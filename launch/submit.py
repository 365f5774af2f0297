"""Trains on a Ray cluster: python launch/submit.py --address http://head:8265 -- --num-actors 32

What stands after -- is for launch/train.py. The working directory is sent (without runs, caches,
environments, ROMs and hidden files), the log is shown until the job ends, and the exit code is the
job's. The same command goes on where a stopped job was. Also: status JOB, logs JOB, stop JOB.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.access import SecretError
from launch.control.shutdown import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    EXIT_RESUMABLE,
)
from launch.jobs.connection import ADDRESS_VARIABLE, DEFAULT_ADDRESS, JobError, JobServer

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

COMMANDS = ("status", "logs", "stop")
RAY_STOP_WAIT_S = 3  # of a job that brought no other
STOP_GRACE_S = 30.0  # for Ray to tell that a job has ended
MEANING = {
    EXIT_FINISHED: "finished",
    EXIT_RESUMABLE: "stopped with a checkpoint; the same command goes on",
    EXIT_BAD_INPUT: "bad input; its log says what",
    EXIT_INTERRUPTED: "left at once; checkpoints from before are there",
}


def say(text: str) -> None:
    sys.stdout.write(f"[submit] {text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words and words[0] in COMMANDS else "submit"
    at = words.index("--") if "--" in words else len(words)
    options = _parser(command).parse_args(words[:at])
    try:
        if command == "submit":
            return submit(options, words[at + 1 :])
        client = _connect(options).client()
        return {"status": status, "logs": logs, "stop": stop}[command](client, options.job)
    except (JobError, SecretError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT


def _parser(command: str) -> argparse.ArgumentParser:
    is_submit = command == "submit"
    name = "submit.py" if is_submit else f"submit.py {command}"
    parser = argparse.ArgumentParser(
        prog=name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--address",
        default=os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS),
        help=f"of the head's job server (default {ADDRESS_VARIABLE} or {DEFAULT_ADDRESS})",
    )
    parser.add_argument(
        "--allow-open-cluster",
        action="store_true",
        help="send even where no token is asked for, and anybody may read and run things",
    )
    if not is_submit:
        parser.add_argument("job", help="what submit.py printed when it sent the job")
        return parser
    parser.add_argument("--no-wait", action="store_true", help="return when the job is sent")
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME[=FILE]",
        help="environment variable for the job, with the value it has here or FILE holds; sealed "
        "with the cluster's token on its way",
    )
    return parser


def _connect(options: argparse.Namespace) -> JobServer:
    return JobServer(options.address, allow_open=options.allow_open_cluster, warn=say)


def submit(options: argparse.Namespace, for_train: Sequence[str]) -> int:
    """Sends a job; 0 once it is sent with --no-wait, else the job's own exit code."""
    from launch.jobs.environment import job_environment
    from launch.jobs.sending import read_secrets, request_for, send  # seconds, as train.py's own

    request = request_for(for_train, allow_open=options.allow_open_cluster)
    hidden = read_secrets(options.secret)
    server = _connect(options)
    variables = job_environment(request.stop_budget_s, hidden, server.token)
    client = server.client()
    send(client, request, variables, say)
    job = f"{request.name} --address {server.address}"
    say(f"sent; to end it in a checkpoint: python launch/submit.py stop {job}")
    if options.no_wait:
        return EXIT_FINISHED
    return logs(client, request.name)


def logs(client: JobSubmissionClient, job: str) -> int:
    """Shows the log until the job ends; the job's exit code. Ctrl-C leaves the job alone."""
    from launch.jobs.following import JobLost, follow, job_info

    job_info(client, job)
    try:
        follow(client, job, sys.stdout)
    except KeyboardInterrupt:
        say(f"job {job} goes on; `logs` shows more of it, `stop` ends it in a checkpoint")
        return EXIT_INTERRUPTED
    except JobLost as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    return _report(client, job)


def status(client: JobSubmissionClient, job: str) -> int:
    """0 whatever the state, which is printed."""
    from launch.jobs.following import job_info

    info = job_info(client, job)
    if info.status.is_terminal():
        _report(client, job)
    else:
        say(f"job {job} is {info.status.value.lower()}")
    return EXIT_FINISHED


def stop(client: JobSubmissionClient, job: str) -> int:
    """0 once the job has ended in a checkpoint or had finished before, else 1."""
    from launch.jobs.environment import STOP_WAIT
    from launch.jobs.following import job_info

    variables = (job_info(client, job).runtime_env or {}).get("env_vars", {})
    wait_s = int(variables.get(STOP_WAIT, RAY_STOP_WAIT_S))
    if client.stop_job(job):
        say(f"told job {job} to stop; it has {wait_s} s for its checkpoint")
    deadline = time.monotonic() + wait_s + STOP_GRACE_S
    with contextlib.suppress(KeyboardInterrupt):
        while not job_info(client, job).status.is_terminal():
            if time.monotonic() > deadline:
                break
            time.sleep(1.0)
        else:
            return EXIT_FINISHED if _report(client, job) in (0, EXIT_RESUMABLE) else EXIT_FAILED
    say(f"job {job} has not ended yet; ask again with `status`")
    return EXIT_FAILED


def _report(client: JobSubmissionClient, job: str) -> int:
    """Says how the job ended; its exit code."""
    from launch.jobs.following import exit_code, job_info

    code = exit_code(client, job)
    meaning = MEANING.get(code)
    if meaning is None:
        info = job_info(client, job)
        cause = (info.message or "no more is known").splitlines()[0]
        meaning = f"{info.status.value.lower()}; {cause}"
    say(f"job {job} ended with code {code}: {meaning}")
    return code


if __name__ == "__main__":
    sys.exit(main())
