"""What a job of `launch/submit.py` runs on the cluster's head: launch/train.py with its arguments.

Secrets go into this process's environment only, and `runs/` to where it outlasts the job.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.access import SecretError
from launch.control.shutdown import EXIT_BAD_INPUT, EXIT_FAILED
from launch.jobs.environment import EXIT_LINE, JobRefused, check_versions, keep_runs, take_secrets


def main(arguments: Sequence[str] | None = None) -> int:
    code = EXIT_FAILED
    try:
        code = run_job(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_FAILED
    finally:
        # Ray keeps no exit code of a job that it was told to stop.
        sys.stdout.write(f"{EXIT_LINE}{code}\n")
        sys.stdout.flush()
    return code


def run_job(arguments: Sequence[str]) -> int:
    """The exit code of training; nothing is begun where the job can't run."""
    try:
        check_versions(os.environ)
        names = take_secrets(os.environ)
    except (JobRefused, SecretError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_BAD_INPUT
    lasting = keep_runs(Path.cwd())
    sys.stdout.write(f"[job] on {socket.gethostname()}, where runs/ is {lasting}\n")
    sys.stdout.write(f"[job] secrets: {', '.join(names) or 'none'}\n")
    from launch import train  # seconds: only for a job that can run

    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
