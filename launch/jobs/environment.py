"""What a job takes along in environment variables, written by whoever submits and read on the head.

Ray shows these variables in its logs and to whoever has the token; secrets among them are sealed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import ray

from launch.access import HOW_TO_GET_A_TOKEN, SecretError, ray_token
from launch.jobs.sealing import seal, unseal

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # Ray's: seconds between SIGTERM and SIGKILL
SUBMITTED_BY = "WARPZONE_SUBMITTED_BY"
SECRETS = "WARPZONE_SECRETS"
# Beyond the stop budget, which begins when the run takes notice: the rest of a call, and the end
# of its processes.
STOP_MARGIN_S = 30
EXIT_LINE = "[job] exit code "  # and the code: the last line of a job's log
# On the head, which outlives the folder that a job's package is unpacked into.
LASTING_RUNS = Path("~/warpzone/runs")


class JobRefused(Exception):
    """The job can't start here; the message says why and what to do."""


def job_environment(
    stop_budget_s: float, secrets: Mapping[str, str], token: str | None
) -> dict[str, str]:
    """Variables for a job. Raises SecretError where secrets have no token to be sealed with."""
    variables = {
        STOP_WAIT: str(math.ceil(stop_budget_s) + STOP_MARGIN_S),
        SUBMITTED_BY: _versions(),
    }
    if secrets:
        if token is None:
            raise SecretError(
                "a cluster that asks for no token can keep no secrets: start it with "
                "RAY_AUTH_MODE=token (docs/security.md), or put them into files on its head"
            )
        variables[SECRETS] = seal(secrets, token)
    return variables


def check_versions(environ: Mapping[str, str]) -> None:
    """Raises JobRefused if the job was submitted from other versions than run it."""
    theirs = environ.get(SUBMITTED_BY, _versions())
    if theirs != _versions():
        raise JobRefused(
            f"this job was submitted from {theirs}, but the cluster's `python` ({sys.executable}) "
            f"has {_versions()}: prepare both from the same requirements"
        )


def take_secrets(environ: MutableMapping[str, str]) -> list[str]:
    """Puts unsealed secrets into `environ`; their names. Raises SecretError if they can't be."""
    sealed = environ.pop(SECRETS, None)
    if sealed is None:
        return []
    token = ray_token()
    if token is None:
        raise SecretError(f"the job's secrets need the cluster's token; {HOW_TO_GET_A_TOKEN}")
    secrets = unseal(sealed, token)
    environ.update(secrets)
    return sorted(secrets)


def keep_runs(working_dir: Path) -> Path:
    """Makes `runs/` of a job lead to where runs outlast jobs; returns that folder."""
    lasting = LASTING_RUNS.expanduser()
    lasting.mkdir(parents=True, exist_ok=True)
    link = working_dir / "runs"
    if not link.is_symlink():  # jobs with equal packages share one folder
        link.symlink_to(lasting)
    return lasting


def _versions() -> str:
    python = ".".join(map(str, sys.version_info[:2]))
    return f"Ray {ray.__version__} on Python {python}"
