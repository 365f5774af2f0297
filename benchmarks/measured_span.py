"""The stretch of a run that a benchmark measures, cut out of its metric records.

Rates come from differences of counters over the stretch, never from means of rates. Percentages are
means over the records' windows weighted by the windows' length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Record = Mapping[str, object]

# A call's seconds all fall into the window in which it ends; over a few windows that is an error.
MIN_WINDOWS = 5


@dataclass(frozen=True, slots=True)
class Span:
    """At least two records, oldest first; the first is only the base of the differences."""

    records: tuple[Record, ...]

    @property
    def seconds(self) -> float:
        return _number(self.records[-1], "timestamp") - _number(self.records[0], "timestamp")

    def gained(self, counter: str) -> float:
        """How far `counter` rose."""
        return _number(self.records[-1], counter) - _number(self.records[0], counter)

    def rate(self, counter: str) -> float:
        """How far `counter` rose per second."""
        return self.gained(counter) / self.seconds

    def mean(self, name: str, weight: str | None = None) -> float:
        """Mean of `name` over the windows that have it, by length (times `weight`); NaN if none."""
        total = weights = 0.0
        for before, record in zip(self.records, self.records[1:], strict=False):
            if record.get(name) is None:
                continue
            share = _number(record, "timestamp") - _number(before, "timestamp")
            share *= 1.0 if weight is None else _number(record, weight)
            total += share * _number(record, name)
            weights += share
        return total / weights if weights > 0 else math.nan

    def highest(self, prefix: str) -> dict[str, float]:
        """The largest value of every metric that begins with `prefix`, by the rest of its name."""
        found: dict[str, float] = {}
        for record in self.records:
            for name, value in record.items():
                if name.startswith(prefix) and isinstance(value, int | float):
                    key = name.removeprefix(prefix)
                    found[key] = max(found.get(key, -math.inf), float(value))
        return found


def steady_span(records: Sequence[Record], warm_up: float) -> Span:
    """From learning's first updates to the last collected step, less the share `warm_up` of it.

    What follows the last collected step (leftover updates, final evaluation, checkpoint) has idle
    actors by construction and is left out. Raises ValueError when too few records remain.
    """
    if not 0.0 <= warm_up < 1.0:
        raise ValueError(f"warm_up must lie in [0, 1), got {warm_up}")
    final_step = max((_number(r, "global_step") for r in records), default=0.0)
    learning = [
        r for r in records if _number(r, "update") > 0 and _number(r, "global_step") < final_step
    ]
    if learning:
        began, ended = _number(learning[0], "timestamp"), _number(learning[-1], "timestamp")
        start = began + warm_up * (ended - began)
        kept = tuple(r for r in learning if _number(r, "timestamp") >= start)
        if len(kept) > MIN_WINDOWS:
            return Span(kept)
    raise ValueError(
        f"{len(records)} records hold {len(learning)} from the time of acting and learning, too "
        f"few for {MIN_WINDOWS} windows after a warm-up of {warm_up:.0%}; let the run last longer"
    )


def _number(record: Record, name: str) -> float:
    value = record.get(name)
    if not isinstance(value, int | float):
        raise ValueError(f"a metric record has no number {name!r}: {value!r}")
    return float(value)
