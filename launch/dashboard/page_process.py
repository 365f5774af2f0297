"""The live page of a run, in a process of its own: it serves browsers and the run does not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import launch
from launch.config import ConfigError
from launch.dashboard.config import DashboardConfig
from launch.dashboard.serving import TOKEN_VARIABLE, ServingError, access_for, listen

END_GRACE_S = 5.0


class PageProcess:
    """Holds the port from the start on; serves once there is a run directory, until `close`."""

    def __init__(self, config: DashboardConfig) -> None:
        """Raises ConfigError where the page can't be served as `config` says."""
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None
        if not config.enabled:
            return
        try:
            self._access = access_for(config.host, config.token_file)
            self._listener = listen(config.host, config.port)
        except ServingError as error:
            raise ConfigError(
                f"{error} (dashboard.host={config.host}, dashboard.port={config.port}, "
                f"dashboard.token_file={config.token_file})"
            ) from error

    def show(self, run_dir: Path) -> str | None:
        """Starts to serve the run in `run_dir`; returns the address, None without a page.

        A session of its own, since Ctrl-C is for the run, which may be watched to its end.
        """
        if self._listener is None:
            return None
        port = self._listener.getsockname()[1]
        descriptor = self._listener.fileno()
        root = str(Path(launch.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        if self._access.token is not None:
            environ[TOKEN_VARIABLE] = self._access.token
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.watch", str(run_dir), "--listener", str(descriptor)],
            env=environ,
            pass_fds=(descriptor,),
            stdin=subprocess.PIPE,  # its end, however this process ends, ends the page
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._listener.close()
        self._listener = None
        return self._access.address(self._config.host, port)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
