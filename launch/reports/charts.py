"""Line charts as SVG text: no script, no library, a page of them opens anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 420, 220  # of the view box; shown as wide as its column
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34  # margins
MOST_POINTS = 300  # of a line; a screen shows no more
SHORTEST_LINE = 3.0
MARGIN = 0.04  # of the range of values, beyond the lowest and the highest
N_COLOURS = 6  # --c0 .. --c5 in page.css

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """x, y [N], sorted by x, y NaN in gaps; low and high [N] are its band, None without."""

    label: str
    x: Points
    y: Points
    low: Points | None = None
    high: Points | None = None

    @property
    def last(self) -> float | None:
        """Its newest value, None if it has none."""
        finite = self.y[np.isfinite(self.y)]
        return float(finite[-1]) if len(finite) else None


def line_of(label: str, pairs: Sequence[tuple[float, float | None]]) -> Line:
    """A line through (x, y), thinned to MOST_POINTS with its last point kept; None is a gap."""
    stride = max(1, -(-len(pairs) // MOST_POINTS))
    kept = list(pairs)[::-1][::stride][::-1]
    x = np.array([p[0] for p in kept], np.float64)
    y = np.array([math.nan if p[1] is None else p[1] for p in kept], np.float64)
    return Line(label, x, y)


def mean_line(label: str, lines: Sequence[Line]) -> Line:
    """The mean over several runs with a band from the lowest to the highest, on a common grid.

    A run counts from its first to its last value; between values it is interpolated.
    """
    solid = [(line.x[ok], line.y[ok]) for line in lines if (ok := np.isfinite(line.y)).any()]
    if not solid:
        return Line(label, np.empty(0), np.empty(0))
    grid = np.linspace(min(x[0] for x, _ in solid), max(x[-1] for x, _ in solid), MOST_POINTS)
    rows = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in solid])
    covered = np.isfinite(rows).any(axis=0)
    grid, rows = grid[covered], rows[:, covered]
    return Line(
        label, grid, np.nanmean(rows, axis=0), np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    step = _round_step((high - low) / most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def short(value: float) -> str:
    """A number in few characters.

    >>> [short(v) for v in (0, 0.25, 1234567, 12000, -3.0, 0.00004)]
    ['0', '0.25', '1.23M', '12k', '-3', '4e-05']
    """
    size = abs(value)
    # Each limit is where rounding would carry into another digit.
    for limit, unit, suffix in ((9.995e8, 1e9, "G"), (9.995e5, 1e6, "M"), (9999.5, 1e3, "k")):
        if size >= limit:
            return f"{value / unit:.3g}{suffix}"
    return "0" if not value else f"{value:.4g}" if size >= 1e-3 else f"{value:.2g}"


def draw_chart(title: str, unit: str, lines: Sequence[Line], x_label: str) -> str:
    """A figure with title, unit, axes and a legend that tells the last values; "" without data."""
    drawn = [line for line in lines if line.last is not None]
    if not drawn:
        return ""
    frame = _Frame.around(drawn)
    parts = [frame.axes(x_label)]
    for index, line in enumerate(drawn):
        parts.append(frame.band(line, index % N_COLOURS))
    for index, line in enumerate(drawn):
        parts.append(frame.path(line, index % N_COLOURS))
    legend = "".join(
        f'<li><i class="k{index % N_COLOURS}"></i>{escape(line.label)} '
        f"<b>{short(line.last or 0.0)}</b></li>"
        for index, line in enumerate(drawn)
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> '
        f"<span>{escape(unit)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>'
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    """The range of values that a chart shows, and where each lies."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, lines: Sequence[Line]) -> _Frame:
        x = np.concatenate([line.x for line in lines])
        bands = [b for line in lines for b in (line.y, line.low, line.high) if b is not None]
        y = np.concatenate(bands)
        y = y[np.isfinite(y)]
        x0, x1 = _widened(float(x.min()), float(x.max()))
        y0, y1 = _widened(float(y.min()), float(y.max()))
        margin = MARGIN * (y1 - y0)
        # A scale that begins at 0 compares sizes; one that does not shows changes of large values.
        y0 = 0.0 if 0 <= y0 < 0.5 * y1 else y0 - margin
        return cls(x0, x1, y0, y1 + margin)

    def axes(self, x_label: str) -> str:
        parts = []
        for value in ticks(self.y0, self.y1, 5):
            y = self._y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>'
            )
        for value in ticks(self.x0, self.x1, 5):
            parts.append(
                f'<text x="{self._x(value):.1f}" y="{HEIGHT - BOTTOM + 15}" '
                f'text-anchor="middle">{short(value)}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'
        )
        return "".join(parts)

    def path(self, line: Line, colour: int) -> str:
        """Broken at gaps; what is too short for a line between gaps is a dot."""
        parts: list[str] = []
        for run in _stretches(line.y):
            xs, ys = self._x(line.x[run]), self._y(line.y[run])
            if max(np.ptp(xs), np.ptp(ys)) < SHORTEST_LINE:
                parts.append(f'<circle class="k{colour}" cx="{xs[0]:.1f}" cy="{ys[0]:.1f}" r="3"/>')
                continue
            points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
            parts.append(f'<path class="line k{colour}" d="M{points}"/>')
        return "".join(parts)

    def band(self, line: Line, colour: int) -> str:
        if line.low is None or line.high is None or not len(line.x):
            return ""
        x = self._x(np.concatenate([line.x, line.x[::-1]]))
        y = self._y(np.concatenate([line.low, line.high[::-1]]))
        points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
        return f'<path class="band k{colour}" d="M{points}Z"/>'

    def _x(self, value):
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def _y(self, value):
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range wide enough for ticks that read differently, however close its ends."""
    least = max(abs(low), abs(high)) * 5e-3
    if high - low > least:
        return low, high
    if not least:
        return 0.0, 1.0
    middle = (low + high) / 2
    return middle - least / 2, middle + least / 2


def _stretches(y: Points) -> list[slice]:
    """Where values follow each other without a gap."""
    padded = np.concatenate([[False], np.isfinite(y), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return [slice(a, b) for a, b in zip(edges[0::2], edges[1::2], strict=True)]
