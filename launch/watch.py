"""Shows a running or finished run in the browser: python launch/watch.py runs/NAME [--port 8321]"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from launch.access import SecretError, is_loopback, read_secret_file
from launch.dashboard.run_view import NotARunError, RunView, check_run
from launch.dashboard.server import make_app

DEFAULT_PORT = 8321
MIN_TOKEN_LENGTH = 8
TOKEN_VARIABLE = "WARPZONE_WATCH_TOKEN"


def fail(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="watch.py", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="the folder of a run, e.g. runs/mario-quick")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="0 takes any free one (default %(default)s)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; beyond this machine a token is needed (default %(default)s)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        help=f"file with the secret that browsers must show, as {TOKEN_VARIABLE} may hold it",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        fail(f"--port must lie in [0, 65535], got {options.port}")
    return options


def token_given(file: Path | None) -> str | None:
    """The token in `file`, else the variable's; None without either. Exits with code 2 if bad."""
    token = os.environ.get(TOKEN_VARIABLE) or None
    if file is not None:
        try:
            token = read_secret_file(file)
        except SecretError as error:
            fail(f"--token-file: {error}")
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        where = TOKEN_VARIABLE if file is None else f"--token-file {file}"
        fail(f"the token in {where} must have at least {MIN_TOKEN_LENGTH} characters")
    return token


def token_for_people() -> str:
    """A new one, to be printed: only on a terminal, since other output is kept in logs."""
    if not sys.stdout.isatty():
        fail(
            "beyond this machine the page needs a token, and one is made up only on a terminal: "
            f"give one in {TOKEN_VARIABLE} or with --token-file, or use --host 127.0.0.1"
        )
    return secrets.token_urlsafe(16)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything else so that a port in use is found at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        fail(
            f"can't listen on {host} port {port}: {error.strerror}; "
            "is the page already open there? Choose another with --port, or --port 0"
        )
    return listener


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        check_run(options.run_dir)
    except NotARunError as error:
        fail(str(error))
    token = given = token_given(options.token_file)
    if token is None and not is_loopback(options.host):
        token = token_for_people()
    listener = listen(options.host, options.port)
    shown_host = socket.gethostname() if options.host in ("0.0.0.0", "::") else options.host
    shown_host = f"[{shown_host}]" if ":" in shown_host else shown_host
    shown_token = "TOKEN" if given is not None else token
    query = f"/?token={shown_token}" if token is not None else "/"
    address = f"http://{shown_host}:{listener.getsockname()[1]}{query}"
    sys.stdout.write(f"[watch] {options.run_dir} at {address} (Ctrl-C ends)\n")
    sys.stdout.flush()
    app = make_app(RunView(options.run_dir), token)
    config = uvicorn.Config(app, log_level="warning", access_log=False, ws="websockets-sansio")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
