"""Starts Prometheus for a run on this machine: python launch/prometheus.py runs/NAME [--port 9090]

It scrapes every node of the run's Ray and watches the alert rules of launch/monitoring/alerts.yml.
Prometheus itself is not part of this project: install it from prometheus.io or your distribution.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from launch.monitoring.prometheus_folder import PROMETHEUS_FOLDER, TARGETS_FILE

CONFIG_FILE = "prometheus.yml"
RULES_FILE = "alerts.yml"
DASHBOARD_FILE = "grafana_dashboard.json"
DATA_FOLDER = "data"
DEFAULT_PORT = 9090


def fail(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prometheus.py", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="the folder of a run, e.g. runs/mario-quick")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="on this machine only (default %(default)s)"
    )
    parser.add_argument(
        "--binary", default="prometheus", help="path of Prometheus, if it is not on PATH"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.port <= 65535:
        fail(f"--port must lie in [1, 65535], got {options.port}")
    return options


def prepare(run_dir: Path) -> Path:
    """Puts configuration and rules beside the run's list of nodes; returns their folder.

    Exits with code 2 if the run has no such list.
    """
    folder = run_dir / PROMETHEUS_FOLDER
    if not (folder / TARGETS_FILE).is_file():
        fail(
            f"{run_dir} has no {PROMETHEUS_FOLDER}/{TARGETS_FILE}: name the folder of a run that "
            "runs on Ray (--runtime ray) and has written its first metrics"
        )
    for name in (CONFIG_FILE, RULES_FILE):
        content = resources.files("launch.monitoring").joinpath(name).read_text()
        (folder / name).write_text(content)
    return folder


def command(binary: str, folder: Path, port: int) -> list[str]:
    return [
        binary,
        f"--config.file={folder / CONFIG_FILE}",
        f"--storage.tsdb.path={folder / DATA_FOLDER}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    binary = shutil.which(options.binary)
    if binary is None:
        fail(
            f"there is no program {options.binary!r}; install Prometheus from "
            "https://prometheus.io/download or your distribution, and name it with --binary PATH"
        )
    folder = prepare(options.run_dir)
    dashboard = resources.files("launch.monitoring").joinpath(DASHBOARD_FILE)
    sys.stdout.write(
        f"[monitor] Prometheus at http://127.0.0.1:{options.port}, alerts under /alerts "
        f"(Ctrl-C ends)\n[monitor] for Grafana: import {dashboard}\n"
    )
    sys.stdout.flush()
    words = command(binary, folder.resolve(), options.port)
    os.execv(binary, words)


if __name__ == "__main__":
    main()
