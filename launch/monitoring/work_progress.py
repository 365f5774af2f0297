"""Progress of long work outside a run: a bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINES = 4  # where there is no terminal: after each such part


class WorkProgress:
    """Told of each step; made by `work_progress`."""

    def __init__(self, title: str, total: int, console: Console, bar: Progress | None) -> None:
        self._title = title
        self._total = total
        self._console = console
        self._bar = bar
        self._task = None if bar is None else bar.add_task(escape(title), total=total, note="")
        self._next_line = 1

    def done(self, n_done: int, note: str = "") -> None:
        """`n_done` of all are done now; `note` is a figure worth seeing beside it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=n_done, note=escape(note))
        elif n_done * LINES >= self._next_line * self._total:
            self._next_line = n_done * LINES // self._total + 1
            beside = f", {note}" if note else ""
            self.say(f"{self._title}: {n_done} of {self._total}{beside}")

    def say(self, line: str) -> None:
        """A line that stays, above the bar if there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def work_progress(title: str, total: int, console: Console | None = None) -> Iterator[WorkProgress]:
    """`total` steps of something; the bar goes when they are done or have failed."""
    console = console or Console()
    if not console.is_terminal:
        yield WorkProgress(title, total, console, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield WorkProgress(title, total, console, bar)
