"""A run's way to the cluster: what is checked here, what is sent, and what it is to run."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# The job server's limit, far below the one that Ray documents for packages.
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray.job_submission import JobSubmissionClient

from launch.access import SecretError, read_secret_file
from launch.config import parse
from launch.control.run_directory import run_path
from launch.jobs.connection import JobError
from launch.jobs.package import write_package

ROOT = Path(__file__).resolve().parents[2]
YOUNG_HEAD_S = 60.0  # a new head takes jobs some seconds after it says that it has started


@dataclass(frozen=True, slots=True)
class JobRequest:
    """name: unique on any cluster. entrypoint: for the head's shell. stop_budget_s: the run's."""

    name: str
    entrypoint: str
    stop_budget_s: float


def request_for(for_train: Sequence[str], *, allow_open: bool) -> JobRequest:
    """The job that runs train.py with these arguments.

    Exits with code 2 on a bad setting. Raises JobError for one that means nothing on a cluster,
    or whose run would not outlast its job.
    """
    preset, config = parse(for_train)
    if config.address not in (None, "auto"):
        raise JobError(
            f"address {config.address!r} after -- would lead the job to another cluster; the one "
            "that it is sent to is named before --"
        )
    path = run_path(preset, config)
    if not path.is_absolute() and path.parts[:1] != ("runs",):
        raise JobError(
            f"run_dir {path} would be lost with the job's folder: give an absolute path on the "
            "head or on shared storage, or one that begins with runs/"
        )
    run_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name) or preset
    extra = ["--control.allow-open-cluster"] if allow_open else []
    return JobRequest(
        name=f"{run_name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        entrypoint=shlex.join(["python", "launch/job.py", *for_train, *extra]),
        stop_budget_s=config.control.stop_budget_s,
    )


def read_secrets(asked: Sequence[str]) -> dict[str, str]:
    """NAME from this environment, NAME=FILE from a file.

    Messages never repeat what may be a value that was given in a file's place.
    """
    found = {}
    for each in asked:
        name, equals, file = each.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise SecretError("--secret must be NAME or NAME=FILE, with the name of a variable")
        if not equals:
            if not os.environ.get(name):
                raise SecretError(f"--secret {name}: this variable is not set here")
            found[name] = os.environ[name]
        elif not Path(file).is_file():
            raise SecretError(f"--secret {name}=FILE: no such file; values are not taken from here")
        else:
            found[name] = read_secret_file(Path(file))
    return found


def send(
    client: JobSubmissionClient,
    request: JobRequest,
    variables: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Uploads the working directory, unless the cluster has it, and submits. Raises JobError."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "package.zip"
        size = write_package(ROOT, archive, DASHBOARD_CLIENT_MAX_SIZE)
        say(f"sending {ROOT} ({size / 2**20:.1f} MiB) to {client.get_address()}")
        runtime_env = {"working_dir": str(archive), "env_vars": variables}
        deadline = time.monotonic() + YOUNG_HEAD_S
        while True:
            try:
                client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=request.name,
                    runtime_env=runtime_env,
                )
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    cause = str(error).strip().splitlines()[-1]
                    raise JobError(f"{client.get_address()} takes no job: {cause}") from error
            time.sleep(1.0)
