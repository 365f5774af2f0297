"""Who waited for whom over a whole run, from the shares of its metric records."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

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
    """What each process did and waited for; every record counts for its window's length."""
    totals: dict[tuple[str, str, bool], float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for span, record in run.windows():
        seen = set()
        for name, value in record.items():
            kind = next((k for k in (WORK, WAIT) if name.startswith(k)), None)
            percent = number(value)
            if kind is None or percent is None:
                continue
            process, _, stage = name.removeprefix(kind).rpartition("/")
            totals[process, stage, kind == WAIT] += percent * span
            seen.add(process)
        for process in seen:
            seconds[process] += span
    shares: dict[str, list[Share]] = defaultdict(list)
    for (process, stage, is_wait), total in totals.items():
        percent = total / seconds[process]
        if percent >= LEAST_PERCENT:
            shares[process].append(Share(stage, is_wait, percent))
    for process, found in shares.items():
        shares[process] = found = _with_rest(found)
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
