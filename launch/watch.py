"""Shows a running or finished run in the browser: python launch/watch.py runs/NAME [--port 8321]"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from launch.dashboard.config import DEFAULT_PORT
from launch.dashboard.run_view import NotARunError, RunView, check_run
from launch.dashboard.server import LARGEST_MESSAGE_BYTES, Audience, make_app
from launch.dashboard.serving import TOKEN_VARIABLE, ServingError, access_for, listen

BESIDE_A_RUN = 10  # how much nicer than the run a page is that the run itself started


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
    # Of a run with --dashboard: a descriptor that listens already; standard input ends the page.
    parser.add_argument("--listener", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        fail(f"--port must lie in [0, 65535], got {options.port}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of folders need not be text
    try:
        check_run(options.run_dir)
        if options.listener is not None:
            os.nice(BESIDE_A_RUN)
            listener = socket.socket(fileno=options.listener)
            token = os.environ.get(TOKEN_VARIABLE) or None
        else:
            access = access_for(options.host, options.token_file)
            listener = listen(options.host, options.port)
            token = access.token
            address = access.address(options.host, listener.getsockname()[1])
            sys.stdout.write(f"[watch] {options.run_dir} at {address} (Ctrl-C ends)\n")
            sys.stdout.flush()
    except (NotARunError, ServingError) as error:
        fail(str(error))
    audience = Audience()
    config = uvicorn.Config(
        make_app(RunView(options.run_dir), token, audience=audience),
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=LARGEST_MESSAGE_BYTES,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    if options.listener is not None:
        with_run = (server, audience, options.run_dir)
        threading.Thread(target=_end_with_input, args=with_run, name="end", daemon=True).start()
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return


def _end_with_input(server: uvicorn.Server, audience: Audience, run_dir: Path) -> None:
    sys.stdin.buffer.read()
    audience.part(
        "The process of this run has ended, and this page with it. To open it again: "
        f"python launch/watch.py {shlex.quote(str(run_dir))}"
    )
    server.should_exit = True


if __name__ == "__main__":
    main()
