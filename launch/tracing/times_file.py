"""`timings.json`: where every process's time went so far and what it is at, for who looks later."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from launch.control.runtime import Child
from launch.tracing.in_flight import Work
from launch.tracing.time_book import DRIVER, TimeBook

TIMES_FILE = "timings.json"

_log = logging.getLogger(__name__)


def write_times(
    run_dir: Path, book: TimeBook, children: Sequence[Child], work: Sequence[Work], now: float
) -> None:
    """Replaces the file; what can't be written is left out until the next time."""
    at = {item.ask.child.name: item for item in work}
    places = {child.name: child for child in children}
    processes = {}
    for name in sorted({*book.processes, *places}):
        child = places.get(name)
        record: dict[str, object] = {"role": child.role if child else DRIVER}
        if name in book.processes:
            record["role"] = book.processes[name].role
            record["wall_s"] = round(now - book.processes[name].since, 3)
            record["stages"] = {
                stage: [round(seconds, 3), n_calls]
                for stage, (seconds, n_calls) in book.stages(name, now).items()
            }
        if child is not None:
            record |= {"pid": child.pid, "host": child.host}
        elif name == DRIVER:
            record |= {"pid": os.getpid()}
        if name in at:
            item = at[name]
            record["work"] = {
                "method": item.ask.method,
                "age_s": round(now - item.since, 3),
                "queued": item.n_queued,
            }
        processes[name] = record
    content = {
        "timestamp": time.time(),
        "wall_s": round(now - book.started, 3),
        "processes": processes,
    }
    temporary = run_dir / f".{TIMES_FILE}"
    try:
        temporary.write_text(json.dumps(content) + "\n")
        os.replace(temporary, run_dir / TIMES_FILE)
    except OSError as error:
        _log.debug("[monitor] cannot write %s (%s)", run_dir / TIMES_FILE, error)
