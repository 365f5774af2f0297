"""The picture of an evaluation: a panel a figure, a group a stage, an interval a way of playing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from actors.evaluation_rows import WAYS, Row

PANELS = (
    ("clear_rate", "stages cleared, share"),
    ("max_x", "furthest x, pixels"),
    ("returns", "return, reward"),
    ("lengths", "length, env steps"),
)


def draw_evaluation(rows: Sequence[Row], title: str, path: Path) -> None:
    """Writes a PNG; raises OSError if it can't be written."""
    panels = [(name, label) for name, label in PANELS if getattr(rows[0], name) is not None]
    stages = list(dict.fromkeys(row.stage for row in rows))
    width = max(3.4, 0.9 * len(stages) + 1.6)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    for axis, (name, label) in zip(axes[0], panels, strict=True):
        _draw_panel(axis, rows, stages, name)
        axis.set_title(label, fontsize=10)
        if name == "clear_rate":
            axis.set_ylim(-0.02, 1.02)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(f"{title}\nmeans with 95 % intervals", fontsize=10)
    try:
        figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)


def _draw_panel(axis: Axes, rows: Sequence[Row], stages: Sequence[str], name: str) -> None:
    for index, way in enumerate(WAYS):
        mine = [row for row in rows if (row.moves, row.chance) == (way.moves, way.chance)]
        places = [stages.index(row.stage) + (index - 1.5) * 0.18 for row in mine]
        estimates = [getattr(row, name) for row in mine]
        below = [e.value - (e.value if e.low is None else e.low) for e in estimates]
        above = [(e.value if e.high is None else e.high) - e.value for e in estimates]
        axis.errorbar(
            places,
            [e.value for e in estimates],
            yerr=[below, above],
            fmt="o" if way.moves == "greedy" else "s",
            markersize=5,
            capsize=3,
            color=f"C{index}",
            label=way.label,
        )
    axis.set_xticks(range(len(stages)), [stage or "the game" for stage in stages])
    axis.set_xlim(-0.6, len(stages) - 0.4)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
