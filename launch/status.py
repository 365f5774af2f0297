"""Says how a run is: python launch/status.py runs/NAME

Processes, their ages, queues and waits, and alerts, for a live or a dead run. Reads files only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.config import fail
from launch.dashboard.run_view import NotARunError, check_run
from launch.monitoring.live_table import who_waits
from launch.monitoring.run_state import number
from launch.monitoring.run_status import Alert, ProcessRow, RunStatus, read_status, text

MOST_STAGES = 3
FIGURES = (
    ("env steps", "global_step"),
    ("updates", "update"),
    ("episodes", "episodes"),
    ("return", "avg_return"),
    ("env steps/s", "env_steps_per_sec"),
    ("updates/s", "updates_per_sec"),
    ("replay fill", "replay_fill_rate"),
    ("samples per insert", "ratio_actual"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 2 and one message for a folder that is no run."""
    options = _parser().parse_args(arguments)
    if options.alerts < 0:
        fail(f"--alerts must not be negative, got {options.alerts}")
    try:
        check_run(options.run_dir)
    except NotARunError as error:
        fail(str(error))
    print_status(read_status(options.run_dir), Console(), n_alerts=options.alerts)
    return 0


def print_status(status: RunStatus, console: Console, *, n_alerts: int) -> None:
    """Newest facts first; the newest `n_alerts` alerts at the end."""
    age_s = status.newest_age_s
    seen = "nothing recorded yet" if age_s is None else f"last record {_age(age_s)} ago"
    headline = f"[bold]{escape(str(status.run_dir))}[/bold]: {status.state}, {seen}"
    console.print(headline, soft_wrap=True)
    if status.state == "silent":
        console.print("nothing is written any more: it was killed, or the whole driver is stuck")
    shown = [(label, number(status.metrics.get(name))) for label, name in FIGURES]
    figures = [f"{label} {value:,.6g}" for label, value in shown if value is not None]
    console.print(" | ".join(figures) or "no figures yet", soft_wrap=True)
    console.print(f"waits: {who_waits(status.metrics)}", soft_wrap=True)
    if status.processes:
        beaten = "" if status.beat_age_s is None else f"; heartbeat {_age(status.beat_age_s)} ago"
        console.print(_table(status.processes, f"processes{beaten}:"))
    for alert in status.alerts[-n_alerts:] if n_alerts else ():
        console.print(_line(alert), markup=False, soft_wrap=True)
    if not status.alerts:
        console.print("no alerts")
    for note in status.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="status.py", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="the folder of a run, e.g. runs/mario-quick")
    parser.add_argument(
        "--alerts", type=int, default=10, help="newest alerts to show (default %(default)s)"
    )
    return parser


def _table(rows: Sequence[ProcessRow], title: str) -> Table:
    """Two lines a process, within 80 columns for most."""
    table = Table(box=None, pad_edge=False, title_justify="left", title=title)
    for header in ("process", "pid", "state", "last answer"):
        table.add_column(header, no_wrap=True)
    table.add_column("at work; time so far")
    for row in rows:
        stages = list(row.stages.items())[:MOST_STAGES]
        time_so_far = ", ".join(f"{stage} {share:.0f}%" for stage, share in stages)
        failed = f"failed {row.failures} times" if row.failures else ""
        cells = (
            row.name,
            str(row.pid or ""),
            row.state,
            f"{row.phase} {_age(row.age_s)} ago" if row.age_s is not None else row.phase,
            "\n".join(filter(None, (_work(row), time_so_far, failed))),
        )
        table.add_row(*map(escape, cells))
    return table


def _work(row: ProcessRow) -> str:
    if not row.work:
        return ""
    queued = f", {row.queued} more asked for" if row.queued else ""
    return f"{row.work} for {_age(row.work_s)}{queued}"


def _line(alert: Alert) -> str:
    when = "at some time" if alert.age_s is None else f"{_age(alert.age_s)} ago"
    return text(f"alert, {when}: {alert.kind}: {alert.text}")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
