"""Looks at a Ray cluster before a run joins it: is it there, is it locked, does our key fit, are
its versions ours? Costs milliseconds; Ray itself looks for an absent cluster for two minutes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import grpc
import ray

# No public call finds an address, turns token mode on in this process, or compares versions.
from ray._common.usage.usage_lib import get_cluster_metadata
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._private.utils import check_version_info
from ray._raylet import Config as RayConfig
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError, RayError

from launch.access import HOW_TO_GET_A_TOKEN, SecretError, is_loopback, ray_token
from launch.config import ConfigError

PROBE_S = 5.0
# Any call would do: what matters is how the control service answers someone without a token.
HARMLESS_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
OPEN_CLUSTER = (
    "takes orders from whoever reaches it, since it runs without a token: start it with "
    "RAY_AUTH_MODE=token (docs/security.md)"
)


def check_cluster(address: str, *, allow_open: bool, warn: Callable[[str], None]) -> str:
    """Returns host:port if a run may join the cluster at `address`, which may be `auto`.

    Turns token mode on in this process where the cluster asks for a token and there is one.
    Raises ConfigError, naming what to do, for a cluster that is not there, is open to others than
    this machine without `allow_open`, refuses our token, or has other versions.
    """
    where = _find(address)
    if not _uses_certificates():
        if _asks_for_token(where):
            _show_token()
        elif not is_loopback(where.rpartition(":")[0].strip("[]")):
            if not allow_open:
                raise ConfigError(
                    f"the cluster at {where} {OPEN_CLUSTER}, or take the risk with "
                    "--allow-open-cluster"
                )
            warn(f"WARNING: the cluster at {where} {OPEN_CLUSTER}")
    _check_versions(where)
    return where


def _find(address: str) -> str:
    """host:port of the control service. Raises ConfigError if no cluster is known."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"address {address!r} is one of Ray Client, through which a run can't be driven; "
            "submit it with launch/submit.py, or give host:port of the cluster's head"
        )
    try:
        return canonicalize_bootstrap_address_or_die(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise ConfigError(_unreachable(address, str(error))) from error


def _unreachable(address: str, cause: str) -> str:
    return (
        f"address {address!r} leads to no Ray cluster ({cause}); check it, or leave --address "
        "and RAY_ADDRESS out to start Ray on this machine"
    )


def _uses_certificates() -> bool:
    """Whether Ray speaks TLS here; then only who has the cluster's certificate gets in at all."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _asks_for_token(where: str) -> bool:
    """How it answers a call without one. Raises ConfigError if it does not answer as Ray does."""
    # Not through a proxy, and not with what an earlier channel of this process found out.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(where, options=options) as channel:
        try:
            channel.unary_unary(HARMLESS_CALL)(b"", timeout=PROBE_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            cause = f"no answer within {PROBE_S:.0f} s"
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                cause = str(error.details()).rpartition(": ")[2].rstrip("]")
            raise ConfigError(_unreachable(where, cause)) from error
    return False


def _show_token() -> None:
    """Makes this process use the token; an explicit address alone does not make Ray do so."""
    try:
        token = ray_token()
    except SecretError as error:
        raise ConfigError(f"the cluster asks for a token: {error}") from error
    if token is None:
        raise ConfigError(
            f"the cluster asks for a token, and there is none here; {HOW_TO_GET_A_TOKEN}"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    RayConfig.initialize("")  # it was read when Ray was imported
    assert is_token_auth_enabled()


def _check_versions(where: str) -> None:
    """Ray's own rule, applied before anything of ours runs there."""
    try:
        cluster = get_cluster_metadata(GcsClient(address=where))
        check_version_info(cluster, "this process")
    except AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {where} refuses our token; {HOW_TO_GET_A_TOKEN}"
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"the cluster at {where} runs Ray {cluster['ray_version']} on Python "
            f"{cluster['python_version']}, but this is Ray {ray.__version__} on Python "
            f"{platform.python_version()}; they must be equal: prepare both from the same "
            "requirements, or submit the run with launch/submit.py"
        ) from error
    except RayError as error:
        raise ConfigError(_unreachable(where, str(error).partition("\n")[0])) from error
