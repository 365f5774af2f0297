"""One HTML file that says what became of a run, or of several; it needs nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path

from launch.reports import sections
from launch.reports.charts import short
from launch.reports.groups import groups_of
from launch.reports.run_record import RunRecord, as_text, number, read_run
from launch.reports.videos import videos

REPORT_FILE = "report.html"
# Nothing is loaded from anywhere, and nothing in the page runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:"


def write_report(run_dirs: Sequence[Path], path: Path) -> None:
    """Of one run or several. Raises OSError if a run can't be read or the file not be written."""
    put_page(page_of(run_dirs, path.absolute().parent), path)


def page_of(run_dirs: Sequence[Path], page_folder: Path) -> str:
    """One run or several, as HTML. Raises OSError if the disk fails, not for what files hold."""
    runs = [read_run(run_dir) for run_dir in run_dirs]
    return one_run(runs[0], page_folder) if len(runs) == 1 else several_runs(runs, page_folder)


def put_page(text: str, path: Path) -> None:
    """Readers see the old file or the new one. Raises OSError if it can't be written."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def one_run(run: RunRecord, page_folder: Path) -> str:
    """The page of one run, as HTML.

    page_folder: where it will lie; videos that are too large to be part of it are linked from there
    """
    parts = (
        sections.card("Curves", sections.curves(run, sections.CURVES), is_wide=True),
        sections.card(
            "Learning",
            sections.curves(run, sections.LEARNING_CURVES, sections.UPDATES),
            is_wide=True,
        ),
        sections.card("Stages", sections.stages(run), is_wide=True),
        sections.card("Videos", videos(run, page_folder)),
        sections.card("Who waits for whom", sections.waits(run), kind="tall"),
        sections.card("Versions", sections.versions(run), kind="late"),
        sections.card("Settings", sections.settings(run), kind="late"),
        sections.card("Replay", sections.curves(run, sections.REPLAY_CURVES), is_wide=True),
        sections.card("Incidents", sections.incidents(run), is_wide=True),
    )
    head = f"<header>{_title(run.name, run)}<p>{_about(run)}</p></header>{sections.tiles(run)}"
    return _page(run.name, head, "".join(parts))


def several_runs(runs: Sequence[RunRecord], page_folder: Path) -> str:
    """A comparison, as HTML: runs that differ in their seed alone are drawn as one."""
    groups = groups_of(runs)
    parts = [
        sections.card(
            "Curves",
            '<p class="quiet">Runs that differ in their seed alone are one line, their mean, with '
            "a band from the lowest to the highest.</p>",
            sections.compared_curves(groups),
            is_wide=True,
        ),
        sections.card("Runs", _runs_table(runs), is_wide=True),
        sections.card("Settings that differ", sections.differences(groups), is_wide=True),
    ]
    parts += [
        sections.card(
            run.name,
            f'<div class="halves">{_halves(run, page_folder, len(runs))}</div>',
            is_wide=True,
        )
        for run in runs
    ]
    title = f"{len(runs)} runs: {', '.join(group.label for group in groups)}"
    return _page(title, f"<header><h1>{escape(title)}</h1></header>", "".join(parts))


def _halves(run: RunRecord, page_folder: Path, n_runs: int) -> str:
    named = {
        "Stages": sections.stages(run),
        "Who waits for whom": sections.waits(run),
        "Videos": videos(run, page_folder, n_runs),
        "Incidents": sections.incidents(run),
    }
    return "".join(f"<div><h3>{title}</h3>{part}</div>" for title, part in named.items() if part)


def _page(title: str, head: str, body: str) -> str:
    css = resources.files("launch.reports").joinpath("page.css").read_text()
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)} - WarpZone</title><style>{css}</style></head>"
        f"<body>{head}<main>{body}</main>"
        f'<p class="quiet">Written by launch/report.py, {made}.</p></body></html>\n'
    )


def _title(name: str, run: RunRecord) -> str:
    kind = run.state.split()[0]
    return f'<h1>{escape(name)} <span class="state {kind}">{escape(run.state)}</span></h1>'


def _about(run: RunRecord) -> str:
    """What was trained, when, and how much of its files could be read."""
    times = [r.get("timestamp") for r in (*run.metrics[:1], *run.metrics[-1:])]
    told = [as_text(run.settings.get("env.id", "an unknown game"))]
    if "seed" in run.settings:
        told.append(f"seed {as_text(run.settings['seed'])}")
    if times:
        told.append(f"{sections.moment(times[0])} to {sections.moment(times[-1])} UTC")
    if run.n_skipped:
        told.append(f"{run.n_skipped:,} lines could not be read")
    if not run.is_whole:
        told.append("of its long files only a part was read")
    if run.metrics:
        told.append(f"up to env step {number(run.metrics[-1]['global_step']):,.0f}")
    else:
        told.append("it has no metrics")
    return escape(", ".join(told))


def _runs_table(runs: Sequence[RunRecord]) -> str:
    heads = ["run", "state", "game", "seed"]
    heads += [label for label, _ in sections.figures(runs[0])]
    rows = []
    for run in runs:
        row = [
            escape(run.name),
            escape(run.state),
            escape(as_text(run.settings.get("env.id", "-"))),
            escape(as_text(run.settings.get("seed", "-"))),
            *("-" if value is None else short(value) for _, value in sections.figures(run)),
        ]
        rows.append(row)
    return sections.table(heads, rows, n_texts=3)
