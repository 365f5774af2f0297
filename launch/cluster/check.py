"""Checks a file for `ray up` and, for machines of your own, that they answer; starts nothing.

    python launch/cluster/check.py my-cluster.yaml
    python launch/cluster/check.py --offline my-cluster.yaml     # asks no machine

Exit codes: 0 fine, 2 something to put right, which is named.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cluster.hosts import check_hosts
from launch.cluster.launcher_file import read_launcher_file
from launch.config import ConfigError, fail
from launch.control.shutdown import EXIT_FINISHED

USAGE = "usage: python launch/cluster/check.py [--offline] FILE"


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--help"], ["-h"]):
        sys.stdout.write(f"{USAGE}\n\n{__doc__}")
        return EXIT_FINISHED
    asks_hosts = "--offline" not in words
    names = [word for word in words if word != "--offline"]
    if len(names) != 1:
        fail(f"one file is needed\n{USAGE}")
    (name,) = names
    try:
        complete = read_launcher_file(Path(name))
        versions = {}
        if asks_hosts and complete["provider"]["type"] == "local":
            versions = check_hosts(complete)
    except ConfigError as error:
        fail(f"{name}: {error}")
    for address, version in versions.items():
        sys.stdout.write(f"[cluster] {address} answers, Python {version or '3.11 is not there'}\n")
    sys.stdout.write(f"[cluster] {name} is fine: ray up -y {name}\n")
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
