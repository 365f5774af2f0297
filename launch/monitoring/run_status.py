"""What the files of a run say about it: processes, ages, queues, waits, alerts.

Reads, never writes. Works on a running, a stopped and a killed run alike. Records may be old, half
written or strange: what can't be understood is left out, and the rest is shown.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.monitoring.json_lines import JsonLinesReader, JsonValue, parse_json
from launch.monitoring.metrics_writer import EVENTS_FILE, METRICS_FILE
from launch.monitoring.monitor import HEARTBEAT_FILE
from launch.tracing.times_file import TIMES_FILE

SUMMARY_FILE = "summary.json"
SILENT_AFTER_S = 60.0  # several periods of every file
FAILING_S = 5.0  # records of a run that fails may still come after it said so
LARGEST_FILE_BYTES = 64 << 20
# Kinds of events that somebody should look at.
ALERTS = (
    "failed",
    "not_rescued",
    "child_failed",
    "child_quarantined",
    "slow_step_trace",
    "deadline_trace",
    "child_without_room",
    "update_skipped",
    "rolled_back",
    "memory_step_down",
    "checkpoint_failed",
    "checkpoint_upload_failed",
    "segments_lost",
    "segment_rejected",
    "adapter_withdrawn",
    "node_draining",
    "gpu_lost",
    "fell_back_to_cpu",
    "alert",
)
Section = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process; None and "" where no record says."""

    name: str
    pid: int | None
    state: str  # what its supervisor held of it
    phase: str  # what it answered last
    age_s: float | None  # since then, until the newest heartbeat
    work: str  # the call it is at
    work_s: float | None
    queued: int | None  # calls behind that one
    stages: Mapping[str, float]  # percent of its wall time, the longest first
    failures: int


@dataclass(frozen=True, slots=True)
class Alert:
    age_s: float | None
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RunStatus:
    """state: running, silent (killed, or stuck), stopped, finished, failed, or starting."""

    run_dir: Path
    state: str
    newest_age_s: float | None  # of any record
    metrics: Section
    processes: tuple[ProcessRow, ...]
    alerts: tuple[Alert, ...]  # the newest last
    notes: tuple[str, ...] = field(default=())  # what could not be read


def read_status(run_dir: Path, clock: Callable[[], float] = time.time) -> RunStatus:
    """All that the files say; `run_dir` is a run directory. Never fails for what is in them."""
    now = clock()
    notes: list[str] = []
    metrics = _last_record(run_dir / METRICS_FILE, notes)
    beat = _last_record(run_dir / HEARTBEAT_FILE, notes)
    events = _records(run_dir / EVENTS_FILE, notes)
    times = _json_file(run_dir / TIMES_FILE, notes)
    beaten = _newest(metrics, beat, times)
    newest = _newest(metrics, beat, times, *events[-1:])
    age_s = None if newest is None else max(0.0, now - newest)
    failed_at = _newest(*(event for event in events if event.get("event") == "failed"))
    has_failed = failed_at is not None and failed_at >= (beaten or 0.0) - FAILING_S
    summary = _json_file(run_dir / SUMMARY_FILE, notes)
    return RunStatus(
        run_dir,
        _state(summary, age_s, has_failed=has_failed),
        age_s,
        metrics,
        tuple(_process_rows(beat, times, events)),
        tuple(_alert(event, now) for event in events if event.get("event") in ALERTS),
        tuple(notes),
    )


def number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _newest(*records: Section) -> float | None:
    stamps = [number(record.get("timestamp")) for record in records]
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def _state(summary: Section, age_s: float | None, *, has_failed: bool) -> str:
    if summary.get("finished") is True:
        return "finished"
    if summary:
        return "stopped"
    if age_s is None:
        return "starting"
    if has_failed:
        return "failed"
    return "running" if age_s < SILENT_AFTER_S else "silent"


def _process_rows(beat: Section, times: Section, events: list[Section]) -> list[ProcessRow]:
    beats, timed = section(beat.get("processes")), section(times.get("processes"))
    failures = Counter(str(e.get("child")) for e in events if e.get("event") == "child_failed")
    rows = []
    for name in sorted({*beats, *timed}):
        seen, time_of = section(beats.get(name)), section(timed.get(name))
        work = section(time_of.get("work"))
        pid, queued = (number(value) for value in (seen.get("pid"), work.get("queued")))
        pid = number(time_of.get("pid")) if pid is None else pid
        rows.append(
            ProcessRow(
                name=name,
                pid=None if not pid else int(pid),
                state=text(seen.get("state")),
                phase=text(seen.get("phase")),
                age_s=number(seen.get("age_s")),
                work=text(work.get("method")),
                work_s=number(work.get("age_s")),
                queued=None if queued is None else int(queued),
                stages=_percent(time_of),
                failures=failures[name],
            )
        )
    return rows


def _percent(time_of: Section) -> dict[str, float]:
    wall_s = number(time_of.get("wall_s"))
    if not wall_s or wall_s < 0:
        return {}
    shares = {}
    for stage, row in section(time_of.get("stages")).items():
        seconds = number(row[0]) if isinstance(row, list) and row else None
        if seconds is not None:
            shares[stage] = 100.0 * seconds / wall_s
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _alert(event: Section, now: float) -> Alert:
    at = number(event.get("timestamp"))
    shown = [
        f"{name} {text(value)}"
        for name, value in event.items()
        if name not in ("timestamp", "event") and value not in (None, "")
    ]
    return Alert(None if at is None else now - at, str(event["event"]), ", ".join(shown))


def section(value: object) -> Section:
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """`value` on one line, cut to what a terminal can show."""
    return "" if value is None else " ".join(str(value).split())[:160]


def _records(path: Path, notes: list[str]) -> list[Section]:
    reader = JsonLinesReader(path)
    records = reader.read_new()
    if reader.n_skipped:
        notes.append(f"{path.name}: {reader.n_skipped} lines are no records and were left out")
    return records


def _last_record(path: Path, notes: list[str]) -> Section:
    records = _records(path, notes)
    return records[-1] if records else {}


def _json_file(path: Path, notes: list[str]) -> Section:
    """{} for a file that is not there; damaged ones are noted."""
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ValueError("too large")
        return section(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} can't be read: {' '.join(str(error).split())[:100]}")
        return {}
