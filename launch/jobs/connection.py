"""The job server of a cluster, looked at before anything is sent: there, locked, of our version."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from urllib.parse import urlsplit

import requests

from launch.access import HOW_TO_GET_A_TOKEN, SecretError, is_loopback, ray_token

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
PROBE_S = 10.0


class JobError(Exception):
    """Something that the user can put right; the message says what."""


class JobServer:
    """address: as given. token: what its cluster asks for, None where it asks for nothing."""

    def __init__(self, address: str, *, allow_open: bool, warn: Callable[[str], None]) -> None:
        """Asks twice at most and sends nothing. JobError if jobs can't or must not go there."""
        self.address = _checked(address)
        self.token: str | None = None
        answer = self._ask({})
        if answer.status_code in (401, 403):
            self.token = _own_token(self.address)
            answer = self._ask({"Authorization": f"Bearer {self.token}"})
            if answer.status_code in (401, 403):
                raise JobError(f"{self.address} refuses our token; {HOW_TO_GET_A_TOKEN}")
        self._check_version(answer)
        if self.token is None and not is_loopback(urlsplit(self.address).hostname or ""):
            _judge_open(self.address, allow_open, warn)

    def client(self):
        """Ray's JobSubmissionClient. Ray is imported here, after its token mode is known."""
        for variable in (ADDRESS_VARIABLE, "RAY_ADDRESS"):
            os.environ.pop(variable, None)  # Ray would prefer them to what it is given
        os.environ["RAY_AUTH_MODE"] = "disabled" if self.token is None else "token"
        from ray._raylet import Config as RayConfig
        from ray.job_submission import JobSubmissionClient

        RayConfig.initialize("")  # Ray may have been imported before
        for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)  # what is told is told by ours
        return JobSubmissionClient(self.address)

    def _ask(self, headers: dict[str, str]) -> requests.Response:
        url = f"{self.address}/api/version"
        try:
            return requests.get(url, headers=headers, timeout=PROBE_S, allow_redirects=False)
        except requests.Timeout as error:
            raise JobError(_not_there(self.address, f"no answer in {PROBE_S:.0f} s")) from error
        except requests.RequestException as error:
            cause = getattr(error.args[0] if error.args else error, "reason", error)
            raise JobError(_not_there(self.address, str(cause).rpartition(": ")[2])) from error

    def _check_version(self, answer: requests.Response) -> None:
        try:
            theirs = str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError) as error:
            cause = f"what answers there is none, HTTP status {answer.status_code}"
            raise JobError(_not_there(self.address, cause)) from error
        from ray import __version__ as ours

        if theirs != ours:
            raise JobError(
                f"{self.address} runs Ray {theirs}, but this is Ray {ours}: prepare both from the "
                "same requirements"
            )


def _checked(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.password is not None:
        shown = f"{parts.scheme}://...@{parts.hostname}" if parts.password else repr(address)
        raise JobError(
            f"--address must be that of a job server, such as {DEFAULT_ADDRESS} or "
            f"http://head:8265, without user and password; got {shown}"
        )
    return address.rstrip("/")


def _own_token(address: str) -> str:
    try:
        token = ray_token()
    except SecretError as error:
        raise JobError(f"{address} asks for a token: {error}") from error
    if token is None:
        raise JobError(f"{address} asks for a token, and there is none here; {HOW_TO_GET_A_TOKEN}")
    return token


def _judge_open(address: str, allow_open: bool, warn: Callable[[str], None]) -> None:
    danger = (
        f"{address} runs what anybody who reaches it sends, since it asks for no token: start the "
        "cluster with RAY_AUTH_MODE=token (docs/security.md)"
    )
    if not allow_open:
        raise JobError(f"{danger}, or take the risk with --allow-open-cluster")
    warn(f"WARNING: {danger}")


def _not_there(address: str, cause: str) -> str:
    return (
        f"{address} is no job server of Ray ({cause}); check the address, that the head runs with "
        "its dashboard, and the tunnel to it if there is one"
    )
