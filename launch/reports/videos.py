"""Recorded episodes as part of a page, or linked to where they would make it too large."""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path

from launch.reports.run_record import RunRecord, number

LARGEST_BYTES = 8 << 20  # of one that is part of a page
MOST_BYTES = 32 << 20  # of all of a page
MOST_OF_A_RUN = 2


def videos(run: RunRecord, page_folder: Path, n_runs: int = 1) -> str:
    """The best and the last recorded evaluation episode.

    n_runs: on the page, which have equal shares of MOST_BYTES
    """
    if not run.videos:
        return ""
    returns: dict[int, float] = {}
    for event in run.events_of("evaluation"):
        steps, played = number(event.get("env_steps")), event.get("returns")
        first = number(played[0]) if isinstance(played, list) and played else None
        if steps is not None and first is not None:
            returns[int(steps)] = first  # the recorded episode is the first
    last = max(run.videos)
    known = [steps for steps in run.videos if steps in returns]
    best = max(known, key=lambda steps: (returns[steps], steps), default=last)
    shown = {"the best": best, "the last": last} if best != last else {"the best and last": last}
    figures = (
        _video(
            f"{name}: after {steps:,} env steps",
            run.videos[steps],
            returns.get(steps),
            page_folder,
            min(LARGEST_BYTES, MOST_BYTES // (MOST_OF_A_RUN * n_runs)),
        )
        for name, steps in shown.items()
    )
    return f'<div class="videos">{"".join(figures)}</div>'


def _video(
    title: str, path: Path, gained: float | None, page_folder: Path, largest_bytes: int
) -> str:
    caption = escape(title if gained is None else f"{title}, return {gained:,.2f}")
    try:
        data = path.read_bytes() if path.stat().st_size <= largest_bytes else None
    except OSError:
        return ""
    if data is None:
        link = escape(os.path.relpath(path, page_folder), quote=True)
        return f'<figure><a href="{link}">{caption}</a></figure>'
    source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><video controls loop muted playsinline preload="auto" src="{source}">'
        f"</video><figcaption>{caption}</figcaption></figure>"
    )
