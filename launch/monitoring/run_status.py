"""What the files of a run say about it: processes, ages, queues, waits, alerts.

Reads, never writes. Works on a running, a stopped and a killed run alike. Records may be old, half
written or strange: what can't be understood is left out, and the rest is shown.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.control.child_health import UP
from launch.monitoring.metrics_writer import EVENTS_FILE, METRICS_FILE
from launch.monitoring.monitor import HEARTBEAT_FILE
from launch.monitoring.record_tail import last_record, newest_records
from launch.monitoring.run_state import (
    Section,
    has_failed,
    newest_timestamp,
    number,
    read_section,
    section,
    silent_after_s,
    state_of_run,
)
from launch.tracing.times_file import TIMES_FILE

EVENTS_BYTES = 2 << 20  # of the newest events, some 12,000; read within half a second
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
GOING_ON = ("running", "silent")


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One process; None and "" where no record says."""

    name: str
    pid: int | None
    state: str  # what its supervisor held of it
    phase: str  # what it answered last
    age_s: float | None  # since then, until now
    work: str  # the call it is at
    work_s: float | None  # so far: until now, of a run that has ended until its last record
    queued: int | None  # calls behind that one
    stages: Mapping[str, float]  # percent of its wall time, the longest first
    failures: int  # among the newest events
    is_stalled: bool


@dataclass(frozen=True, slots=True)
class Alert:
    age_s: float | None
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RunStatus:
    """state: by `state_of_run`."""

    run_dir: Path
    state: str
    newest_age_s: float | None  # of any record
    beat_age_s: float | None  # of the newest heartbeat, which the monitor writes
    metrics: Section
    processes: tuple[ProcessRow, ...]
    alerts: tuple[Alert, ...]  # the newest last
    notes: tuple[str, ...] = field(default=())  # what could not be read


def read_status(run_dir: Path, clock: Callable[[], float] = time.time) -> RunStatus:
    """All that the files say; `run_dir` is a run directory. Never fails for what is in them."""
    now = clock()
    notes: list[str] = []
    metrics = _newest_record(run_dir / METRICS_FILE, notes)
    beat = _newest_record(run_dir / HEARTBEAT_FILE, notes)
    events = _newest_events(run_dir / EVENTS_FILE, notes)
    times = read_section(run_dir / TIMES_FILE, notes)
    newest = newest_timestamp(metrics, beat, *events[-1:])
    state = state_of_run(run_dir, newest, has_failed=has_failed(events), now=now)
    goes_on = state in GOING_ON
    beat_age_s = _age(newest_timestamp(beat), now)
    work_since_s = _age(newest_timestamp(times), now) or 0.0
    rows = _process_rows(beat, times, events, beat_age_s or 0.0, work_since_s if goes_on else 0.0)
    alerts = [_alert(event, now) for event in events if event.get("event") in ALERTS]
    if goes_on:
        alerts += [_stalled(row) for row in rows if row.is_stalled]
    if state == "running" and (beat_age_s or 0.0) > silent_after_s(run_dir):
        alerts.append(Alert(beat_age_s, "stale_heartbeat", "the monitor writes nothing any more"))
    return RunStatus(
        run_dir,
        state,
        _age(newest_timestamp({"timestamp": newest}, times), now),
        beat_age_s,
        metrics,
        tuple(rows),
        tuple(alerts),
        tuple(notes),
    )


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else max(0.0, now - at)


def _process_rows(
    beat: Section,
    times: Section,
    events: Sequence[Section],
    beat_age_s: float,
    work_since_s: float,
) -> list[ProcessRow]:
    """beat_age_s, work_since_s: what has gone by since the ages of `beat` and `times`"""
    beats, timed = section(beat.get("processes")), section(times.get("processes"))
    failures = Counter(str(e.get("child")) for e in events if e.get("event") == "child_failed")
    rows = []
    for name in sorted({*beats, *timed}):
        seen, time_of = section(beats.get(name)), section(timed.get(name))
        work = section(time_of.get("work"))
        pid, queued = (number(value) for value in (seen.get("pid"), work.get("queued")))
        pid = number(time_of.get("pid")) if pid is None else pid
        state, age_s, work_s = text(seen.get("state")), seen.get("age_s"), work.get("age_s")
        rows.append(
            ProcessRow(
                name=name,
                pid=None if not pid else int(pid),
                state=state,
                phase=text(seen.get("phase")),
                age_s=_later(number(age_s), beat_age_s),
                work=text(work.get("method")),
                work_s=_later(number(work_s), work_since_s),
                queued=None if queued is None else int(queued),
                stages=_percent(time_of),
                failures=failures[name],
                # Who starts or stays out is silent by right; older records have no states.
                is_stalled=seen.get("is_stalled") is True and state in ("", *UP),
            )
        )
    return rows


def _later(age_s: float | None, seconds: float) -> float | None:
    return None if age_s is None else age_s + seconds


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


def _stalled(row: ProcessRow) -> Alert:
    """Of a heartbeat, so that it is as new as can be."""
    waited = "some time" if row.age_s is None else f"{row.age_s:.0f} s"
    at = f", at {row.work}" if row.work else ""
    return Alert(row.age_s, "stalled", f"{row.name} has not answered for {waited}{at}")


def text(value: object) -> str:
    """`value` on one line, cut to what a terminal can show."""
    return "" if value is None else " ".join(str(value).split())[:160]


def _newest_record(path: Path, notes: list[str]) -> Section:
    record, n_skipped = last_record(path)
    _note_skipped(path, n_skipped, notes)
    return record


def _newest_events(path: Path, notes: list[str]) -> list[Section]:
    tail = newest_records(path, EVENTS_BYTES)
    _note_skipped(path, tail.n_skipped, notes)
    if not tail.is_whole:
        notes.append(f"{path.name}: alerts and failures are of the newest events only")
    return list(tail.records)


def _note_skipped(path: Path, n_skipped: int, notes: list[str]) -> None:
    if n_skipped:
        notes.append(f"{path.name}: {n_skipped} lines are no records and were left out")
