"""Where the live page listens and who may open it: what `watch.py` and `--dashboard` share."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from launch.access import SecretError, is_loopback, read_secret_file

MIN_TOKEN_LENGTH = 8
TOKEN_VARIABLE = "WARPZONE_WATCH_TOKEN"


class ServingError(ValueError):
    """The page can't be served so; the message says why and what to do, and no secret."""


@dataclass(frozen=True, slots=True)
class Access:
    """token: of the page, None if everybody on this machine may open it; is_new: made up now."""

    token: str | None
    is_new: bool = False

    def address(self, host: str, port: int) -> str:
        """What to open; a token that somebody gave is theirs to fill in."""
        shown_host = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown_host = f"[{shown_host}]" if ":" in shown_host else shown_host
        query = "/" if self.token is None else f"/?token={self.token if self.is_new else 'TOKEN'}"
        return f"http://{shown_host}:{port}{query}"


def access_for(host: str, token_file: Path | None) -> Access:
    """By the token in `token_file` or in the variable; beyond this machine there must be one.

    Raises ServingError.
    """
    token = _token_given(token_file)
    if token is not None or is_loopback(host):
        return Access(token)
    if not sys.stdout.isatty():  # other output is kept in logs
        raise ServingError(
            "beyond this machine the page needs a token, and one is made up only on a terminal: "
            f"give one in {TOKEN_VARIABLE} or in a token file, or listen on 127.0.0.1"
        )
    return Access(secrets.token_urlsafe(16), is_new=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything else so that a port in use is found at once.

    Raises ServingError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        raise ServingError(
            f"can't listen on {host} port {port}: {error.strerror}; "
            "is a page already open there? Choose another port, or 0 for any free one"
        ) from error
    return listener


def _token_given(file: Path | None) -> str | None:
    token = os.environ.get(TOKEN_VARIABLE) or None
    if file is not None:
        try:
            token = read_secret_file(file)
        except SecretError as error:
            raise ServingError(f"token file: {error}") from error
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        where = TOKEN_VARIABLE if file is None else f"the file {file}"
        raise ServingError(f"the token in {where} must have at least {MIN_TOKEN_LENGTH} characters")
    return token
