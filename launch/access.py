"""Who may reach what: addresses that only this machine has, and secrets kept in files or variables.

A secret is never taken from a command line, where every user of the machine can read it.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

RAY_TOKEN = "RAY_AUTH_TOKEN"
RAY_TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
HOW_TO_GET_A_TOKEN = (
    f"Ray looks for it in {RAY_TOKEN}, in the file that {RAY_TOKEN_FILE} names and in "
    "~/.ray/auth_token; docs/security.md says how to make one"
)


class SecretError(ValueError):
    """A secret can't be had; the message names where it was looked for, never its value."""


def is_loopback(host: str) -> bool:
    """True for a name or address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_secret_file(path: Path) -> str:
    """Its text without white space around it. Raises SecretError if there is none."""
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SecretError(f"the secret's file {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecretError(f"the secret's file {path} does not hold text") from error
    if not secret:
        raise SecretError(f"the secret's file {path} is empty")
    return secret


def ray_token() -> str | None:
    """The token of a Ray cluster, looked for where Ray does and in its order; None without one.

    Raises SecretError where a file is named that can't be used.
    """
    if token := os.environ.get(RAY_TOKEN, "").strip():
        return token
    if named := os.environ.get(RAY_TOKEN_FILE):
        return read_secret_file(Path(named))
    usual = Path.home() / ".ray" / "auth_token"
    return read_secret_file(usual) if usual.is_file() else None
