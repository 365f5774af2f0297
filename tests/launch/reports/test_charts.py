"""Charts as SVG: scales, gaps, spreads, and that everything lies inside the picture."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.reports.charts import (
    HEIGHT,
    MOST_POINTS,
    WIDTH,
    draw_chart,
    line_of,
    mean_line,
    short,
    ticks,
)

VALUES = st.floats(-1e12, 1e12, allow_nan=False)
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


@given(VALUES, st.floats(1e-6, 1e12), st.integers(2, 9))
def test_ticks_are_round_even_and_within(low, size, most):
    high = low + size
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return
    found = ticks(low, high, most)
    assert len(found) <= most + 1
    slack = 1e-6 * max(abs(low), abs(high), size)
    assert all(low - slack <= value <= high + slack for value in found)
    gaps = np.diff(found)
    if len(gaps) > 1:
        assert np.allclose(gaps, gaps[0], rtol=1e-3, atol=slack)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1234567, "1.23M"),
        (12_000, "12k"),
        (-3.0, "-3"),
        (4e-5, "4e-05"),
        (999_999, "1M"),
        (9_999.9, "10k"),
    ],
)
def test_numbers_are_short(value, expected):
    assert short(value) == expected


def svg_of(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, re.DOTALL).group())


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.tuples(VALUES, st.none() | VALUES), min_size=1, max_size=40),
        min_size=1,
        max_size=7,
    )
)
def test_every_point_lies_in_the_picture(series):
    lines = [
        line_of(f"line {i}", sorted(pairs, key=lambda p: p[0])) for i, pairs in enumerate(series)
    ]
    figure = draw_chart("Title", "unit", lines, "steps")
    has_data = any(y is not None for pairs in series for _, y in pairs)
    assert bool(figure) == has_data
    if not has_data:
        return
    for path in svg_of(figure).iter("path"):
        if "line" in path.get("class"):
            numbers = [float(n) for n in NUMBERS.findall(path.get("d"))]
            assert all(-0.1 <= x <= WIDTH + 0.1 for x in numbers[0::2])
            assert all(-0.1 <= y <= HEIGHT + 0.1 for y in numbers[1::2])


def test_gaps_break_a_line_and_a_lone_value_is_a_dot():
    pairs = [(0, 1.0), (1, 2.0), (2, None), (3, 5.0), (4, None), (5, 3.0), (6, 4.0)]
    svg = svg_of(draw_chart("Loss", "nats", [line_of("total", pairs)], "steps"))
    assert len([p for p in svg.iter("path") if "line" in p.get("class")]) == 2
    assert len(list(svg.iter("circle"))) == 1
    end_only = [line_of(f"seed {i}", [(10_000 + i, 500.0)]) for i in range(3)]
    long = line_of("another", [(0, 0.0), (10_000, 100.0)])
    svg = svg_of(draw_chart("Return", "reward", [mean_line("seeds", end_only), long], "steps"))
    assert len(list(svg.iter("circle"))) == 1, "three runs that were evaluated once, at their end"


def test_text_is_escaped_and_the_legend_tells_the_last_value():
    figure = draw_chart(
        "<b>x</b>", "a&b", [line_of("<i>", [(0, 1.0), (1, 2.5), (2, None)])], "steps"
    )
    assert "<b>x</b>" not in figure and "&lt;b&gt;x&lt;/b&gt;" in figure and "a&amp;b" in figure
    assert "&lt;i&gt; <b>2.5</b>" in figure


def test_a_long_line_is_thinned_and_keeps_its_end():
    line = line_of("x", [(i, float(i)) for i in range(10_007)])
    assert len(line.x) <= MOST_POINTS and (line.x[-1], line.y[-1]) == (10_006, 10_006.0)


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e3, 1e3)), min_size=1, max_size=15),
        min_size=1,
        max_size=5,
    )
)
def test_a_mean_lies_in_its_band_and_the_band_within_the_runs(series):
    lines = [line_of("run", sorted(dict(pairs).items())) for pairs in series]
    mean = mean_line("mean", lines)
    assert np.all(mean.low <= mean.y + 1e-6) and np.all(mean.y <= mean.high + 1e-6)
    assert mean.low.min() >= min(line.y.min() for line in lines) - 1e-6
    assert mean.high.max() <= max(line.y.max() for line in lines) + 1e-6


def test_a_spread_is_that_of_the_runs_at_each_step():
    low, high = line_of("a", [(0, 0.0), (10, 10.0)]), line_of("b", [(0, 2.0), (5, 12.0)])
    mean = mean_line("both", [low, high, line_of("empty", [(0, None)])])
    at = int(np.argmin(abs(mean.x - 2.5)))
    assert math.isclose(mean.low[at], mean.x[at], abs_tol=1e-9)
    assert math.isclose(mean.high[at], 2 + 2 * mean.x[at], abs_tol=1e-9)
    assert mean.x[-1] == 10.0 and mean.low[-1] == mean.high[-1] == 10.0, "one run is left there"
