"""Processes below this one, and their certain end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def descendants() -> set[psutil.Process]:
    """Every process that this one started, and those that these started."""
    return set(psutil.Process().children(recursive=True))


def end_all(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """Kills those of `processes` that have not ended by themselves within `grace_s`."""
    processes = list(processes)
    if grace_s > 0.0:
        _, processes = psutil.wait_procs(processes, timeout=grace_s)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
