"""Processes below this one or another, and their certain end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def descendants(pid: int | None = None) -> set[psutil.Process]:
    """Every process that this one, or `pid`, started, and those that these started.

    None of a process that is gone: what it left behind has another parent by then.
    """
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def end_all(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """Kills those of `processes` that have not ended by themselves within `grace_s`."""
    processes = list(processes)
    if grace_s > 0.0:
        _, processes = psutil.wait_procs(processes, timeout=grace_s)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
