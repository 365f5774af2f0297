"""Who waited for whom over a whole run, from the shares of its metric records."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from launch.reports.run_record import RunRecord, number

WORK, WAIT = "time_percent/", "wait_percent/"
LIMITER = "limiter"
LEAST_PERCENT = 0.05  # less is not shown


@dataclass(frozen=True, slots=True)
class Share:
    """percent of wall time, mean over the run."""

    name: str
    is_wait: bool
    percent: float


def waits_of(run: RunRecord) -> dict[str, list[Share]]:
    """What each process did and waited for; every record counts for its window's length.

    A process that is in no record yet is starting, which it says once it has started.
    """
    totals: dict[tuple[str, str, bool], float] = defaultdict(float)
    seconds = 0.0
    for span, record in run.windows():
        seconds += span
        for name, value in record.items():
            kind = next((k for k in (WORK, WAIT) if name.startswith(k)), None)
            percent = number(value)
            if kind is None or percent is None:
                continue
            process, _, stage = name.removeprefix(kind).rpartition("/")
            totals[process, stage, kind == WAIT] += percent * span
    shares: dict[str, list[Share]] = defaultdict(list)
    for (process, stage, is_wait), total in totals.items():
        percent = total / seconds
        if percent >= LEAST_PERCENT:
            shares[process].append(Share(stage, is_wait, percent))
    for process, found in shares.items():
        shares[process] = found = _within_whole(_with_rest(found))
        found.sort(key=lambda share: (share.is_wait, -share.percent))
    return dict(sorted(shares.items()))


def _with_rest(shares: list[Share]) -> list[Share]:
    """The limiter's part is what the others leave of 100 %.

    A call's seconds all fall into the window in which it ends, and the limiter's part is cut off at
    0 in each, so that the mean of what was logged is too high.
    """
    others = [share for share in shares if share.name != LIMITER]
    if len(others) == len(shares):
        return shares
    rest = 100.0 - sum(share.percent for share in others)
    return [*others, Share(LIMITER, True, rest)] if rest >= LEAST_PERCENT else others


def _within_whole(shares: list[Share]) -> list[Share]:
    """At most 100 % together: a call that began before the first record counts in full."""
    factor = min(1.0, 100.0 / max(1.0, sum(share.percent for share in shares)))
    return [replace(share, percent=share.percent * factor) for share in shares]
