"""What the terminal shows: a live table, or plain `[train]` lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.monitoring.json_lines import Scalar

WAIT_PREFIX = "wait_percent/"
LINE_PERIOD_S = 10.0

_PERCENT = "{:.0%}".format
_COUNT = "{:,.0f}".format
_TENTHS = "{:,.1f}".format
_THOUSANDTHS = "{:.3f}".format


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table: label, metric name, how to show it, whether short lines have it."""

    label: str
    metric: str
    show: Callable[[float], str]
    in_lines: bool = False


ROWS: tuple[tuple[str, tuple[Cell, ...]], ...] = (
    (
        "progress",
        (
            Cell("env steps", "global_step", _COUNT, True),
            Cell("updates", "update", _COUNT, True),
            Cell("episodes", "episodes", _COUNT),
            Cell("minutes", "elapsed_min", _TENTHS),
        ),
    ),
    (
        "play",
        (
            Cell("return", "avg_return", _TENTHS, True),
            Cell("max x", "env_max_x_pos", _COUNT, True),
            Cell("eval return", "eval_return_mean", _TENTHS),
            Cell("eval max x", "eval_max_x_mean", _COUNT),
        ),
    ),
    (
        "speed",
        (
            Cell("env steps/s", "env_steps_per_sec", _TENTHS, True),
            Cell("updates/s", "updates_per_sec", _TENTHS, True),
            Cell("sims/s", "search_simulations_per_sec", _COUNT),
            Cell("CPU %", "cpu_percent_machine", _COUNT),
        ),
    ),
    (
        "replay",
        (
            Cell("fill", "replay_fill_rate", _PERCENT, True),
            Cell("positions", "replay_positions", _COUNT),
            Cell("ratio", "ratio_actual", _TENTHS, True),
            Cell("wanted", "ratio_target", _TENTHS),
        ),
    ),
    (
        "shards",  # absent with one
        (
            Cell("serving", "replay_shards_alive", _COUNT),
            Cell("lost so far", "replay_shards_lost", _COUNT),
        ),
    ),
    (
        "learning",
        (
            Cell("loss", "loss_total", _THOUSANDTHS, True),
            Cell("value loss", "loss_value", _THOUSANDTHS),
            Cell("weights", "weight_version", _COUNT),
            Cell("value error", "value_error", _THOUSANDTHS),
        ),
    ),
    (
        "LLM prior",
        (
            Cell("cache hits", "prior_cache_hit_rate", _PERCENT),
            Cell("fallbacks", "prior_fallback_rate", _PERCENT, True),
            Cell("latency ms", "prior_latency_ms_p50", _COUNT),
            Cell("states", "prior_rows_total", _COUNT),
        ),
    ),
)


def show(cell: Cell, metrics: Mapping[str, Scalar]) -> str:
    """The cell's text; a dash where a run has no such figure (yet)."""
    value = metrics.get(cell.metric)
    return cell.show(value) if isinstance(value, int | float) else "-"


def who_waits(metrics: Mapping[str, Scalar], n_most: int = 3) -> str:
    """The longest waits, from `wait_percent/<process>/<for what>` figures.

    >>> who_waits({"wait_percent/learner/sample": 61.0, "wait_percent/actor/limiter": 0.2})
    'learner waits for sample 61%'
    """
    waits = []
    for name, value in metrics.items():
        if name.startswith(WAIT_PREFIX) and isinstance(value, int | float) and value >= 1.0:
            process, _, cause = name.removeprefix(WAIT_PREFIX).rpartition("/")
            waits.append((value, f"{process} waits for {cause} {value:.0f}%"))
    longest = sorted(waits, reverse=True)[:n_most]
    return ", ".join(text for _, text in longest) or "nobody for long"


def make_table(metrics: Mapping[str, Scalar], title: str, busy: str = "") -> Table:
    """Figures under their labels, a row per subject; fits 80 columns.

    busy: the long work that is waited for
    """
    table = Table(
        title=title,
        title_justify="left",
        show_header=False,
        box=box.ROUNDED,
        show_lines=True,
        caption=busy or f"waits: {who_waits(metrics)}",
        caption_justify="left",
    )
    table.add_column(style="bold", no_wrap=True)
    for _ in range(max(len(cells) for _, cells in ROWS)):
        table.add_column(justify="right", min_width=12, no_wrap=True)
    for name, cells in ROWS:
        texts = [show(cell, metrics) for cell in cells]
        if all(text == "-" for text in texts):
            continue  # a run without an LLM prior, or nothing learned yet
        labelled = zip(cells, texts, strict=True)
        table.add_row(name, *(f"[dim]{cell.label}[/dim]\n{text}" for cell, text in labelled))
    return table


def make_line(metrics: Mapping[str, Scalar]) -> str:
    """One `[train]` line with the figures people look at first."""
    cells = [cell for _, row in ROWS for cell in row if cell.in_lines]
    parts = [f"{cell.label} {show(cell, metrics)}" for cell in cells if show(cell, metrics) != "-"]
    return f"[train] {' | '.join(parts)} | {who_waits(metrics, n_most=1)}"


def print_summary(
    metrics: Mapping[str, Scalar], title: str, console: Console | None = None
) -> None:
    """The table once more, for the end of a run; always printed whole, terminal or not."""
    (console or Console()).print(make_table(metrics, title))


class LiveTable:
    """Shows the newest metrics; used as a context manager by the controller's one thread.

    No refresh thread: the screen changes only inside `update`, so it can't slow anyone down.
    """

    def __init__(
        self,
        title: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._console = console or Console()
        self._clock = clock
        self._live: Live | None = None
        self._line_at = float("-inf")
        self._metrics: Mapping[str, Scalar] = {}
        self._busy = ""

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def update(self, metrics: Mapping[str, Scalar]) -> None:
        self._metrics = metrics
        if self._live is not None:
            self._draw(self._live)
            return
        now = self._clock()
        if now - self._line_at >= LINE_PERIOD_S:
            self._line_at = now
            self.say(make_line(metrics))

    def busy(self, line: str) -> None:
        """The long work that is waited for now, in place of the waits; "" is none.

        On a terminal only.
        """
        is_new, self._busy = line != self._busy, line
        if self._live is not None and is_new:
            self._draw(self._live)

    def _draw(self, live: Live) -> None:
        live.update(make_table(self._metrics, self._title, self._busy), refresh=True)

    def say(self, line: str) -> None:
        """A line of text that stays, above the table if there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
