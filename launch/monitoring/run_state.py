"""How a run is, by what it wrote: one rule for `status.py`, the live page and the report.

Reads, never writes; records may be old, half written or strange.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from launch.config import ConfigError
from launch.control.config import ControlConfig
from launch.control.stored_settings import read_settings_file
from launch.monitoring.json_lines import JsonValue, parse_json
from launch.tracing.times_file import TIMES_FILE

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
SILENT_AFTER_S = 60.0  # with the usual `control.log_period_s`
SILENT_PERIODS = 6  # with a longer one, so many of it
LARGEST_FILE_BYTES = 64 << 20
LARGEST = 1e100  # sums and squares of such figures are finite too
# Events of a process that begins to run: the second and third are all that older runs have.
STARTS = ("started", "resumed", "replay_placed")

Section = Mapping[str, JsonValue]


def state_of_run(run_dir: Path, newest: float | None, *, has_failed: bool, now: float) -> str:
    """finished, stopped, failed, starting, running, or silent: killed, or stuck.

    newest: the newest `timestamp` of the records and events that the caller has read, None without
    one; has_failed: as of its events, by `failed_after`; now: seconds since 1970
    """
    summary = read_section(run_dir / SUMMARY_FILE)
    if summary:
        return "finished" if summary.get("finished") is True else "stopped"
    if has_failed:
        return "failed"
    # While a long checkpoint is written, or something is compiled, nothing else is.
    newest = newest_timestamp({"timestamp": newest}, read_section(run_dir / TIMES_FILE))
    if newest is None:
        return "starting"
    return "running" if now - newest < silent_after_s(run_dir) else "silent"


def failed_after(event: Section, before: bool) -> bool:
    """Whether a run has failed as of `event`; `before`: whether it had until then.

    A failed run may write more, since it saves what it can, until a new process begins.
    """
    kind = event.get("event")
    return kind == "failed" or (before and kind not in STARTS)


def has_failed(events: Iterable[Section]) -> bool:
    """events: the oldest first"""
    failed = False
    for event in events:
        failed = failed_after(event, failed)
    return failed


def silent_after_s(run_dir: Path) -> float:
    """How long a run that is well may write nothing, by how often it was told to write."""
    path = run_dir / CONFIG_FILE
    try:
        written_at = path.stat().st_mtime_ns
    except OSError:
        return SILENT_AFTER_S
    return max(SILENT_AFTER_S, SILENT_PERIODS * _log_period_s(path, written_at))


@lru_cache(maxsize=16)  # the live page asks again and again
def _log_period_s(path: Path, written_at: int) -> float:
    try:
        return read_settings_file(path).config.control.log_period_s
    except ConfigError:
        return ControlConfig().log_period_s


def number(value: object) -> float | None:
    """`value` if it is a number that can be drawn: finite, and not beyond LARGEST."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return as_float if abs(as_float) <= LARGEST else None


def newest_timestamp(*records: Section) -> float | None:
    """None if no record has one."""
    stamps = [number(record.get("timestamp")) for record in records]
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def section(value: object) -> Section:
    """`value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def read_section(path: Path, notes: list[str] | None = None) -> Section:
    """The JSON object in a file; {} without one. What can't be read is added to `notes`."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ValueError("too large")
        return section(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if notes is not None:
            notes.append(f"{path.name} can't be read: {' '.join(str(error).split())[:100]}")
        return {}
