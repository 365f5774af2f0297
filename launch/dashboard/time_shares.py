"""Who works at what and who waits for whom, as shares of wall time: from `timings.json`.

While a run goes on, of the last minute, by what the file said then and says now; of a run that has
ended, of all its time. Runs that are older than the file have only shares of their metric records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch.monitoring.json_lines import JsonValue
from launch.tracing.time_book import DRIVER, IDLE
from launch.tracing.timing_tree import MOST_OF_A_ROLE

WINDOW_S = 60.0
LEAST_WINDOW_S = 15.0  # of less than that, a call more or less would be too much
WORK, WAIT, LIMITER = "time_percent/", "wait_percent/", "limiter"
NOTHING_ASKED = "nothing to do (limiter, pause, restart)"
WORDS = {
    "insert-wait": NOTHING_ASKED,
    "limiter-wait": NOTHING_ASKED,
    "turn-wait": "nothing to do (turn, pause, restart)",
    "others-or-idle": "serves others, or idle",
    "idle": "idle",
}
Section = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class _Times:
    """Of one process so far, in seconds; `at_work` is what it has spent on a call under way."""

    role: str
    wall_s: float
    stages: Mapping[str, float]  # of calls that were answered, without what is left over
    at_work: Mapping[str, float]


class TimeShares:
    """Used by one reader; `add` whenever the file has changed."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, dict[str, _Times]]] = deque()

    def add(self, content: Section) -> None:
        """What `timings.json` holds; what can't be understood of it is left out."""
        at = _number(content.get("timestamp"))
        processes = content.get("processes")
        if at is None or not isinstance(processes, dict):
            return
        times = {name: _times(p) for name, p in processes.items() if isinstance(p, dict)}
        if self._taken and not _goes_on(self._taken[-1][1], times):
            self._taken.clear()  # another process of the run
        self._taken.append((at, times))
        while len(self._taken) > 2 and at - self._taken[1][0] >= WINDOW_S:
            self._taken.popleft()

    def section(self, metrics: Section, *, has_ended: bool) -> dict[str, JsonValue]:
        """rows: a process each, or a role of many; over: in words, what time they are shares of.

        metrics: the newest record, for runs without such a file
        """
        if not self._taken:
            return {"rows": _rows_of_record(metrics), "over": "in the newest record"}
        (began, before), (ended, now) = self._taken[0], self._taken[-1]
        if has_ended or ended - began < LEAST_WINDOW_S:
            before, over = {}, "since the last start"
        else:
            over = f"in the last {ended - began:.0f} s"
        rows: list[JsonValue] = []
        for title, names in _titles(now):
            spent = [_spent(now[name], before.get(name)) for name in names]
            rows.append({"name": title, "parts": _parts(now[names[0]].role, spent)})
        return {"rows": rows, "over": over}


def _times(process: Section) -> _Times:
    role, stages = str(process.get("role")), process.get("stages")
    seconds: dict[str, float] = {}
    for stage, row in stages.items() if isinstance(stages, dict) else ():
        value = _number(row[0]) if isinstance(row, list) and row else None
        if value is not None and (role == DRIVER or stage != IDLE.get(role, "idle")):
            seconds[stage] = value
    work = process.get("work")
    work = work if isinstance(work, dict) else {}
    age_s = _number(work.get("age_s")) or 0.0
    wall_s = _number(process.get("wall_s")) or 0.0
    return _Times(role, wall_s, seconds, {str(work.get("method")): age_s} if age_s > 0 else {})


def _goes_on(before: Mapping[str, _Times], now: Mapping[str, _Times]) -> bool:
    return all(now[name].wall_s >= before[name].wall_s for name in before if name in now)


def _titles(times: Mapping[str, _Times]) -> Iterable[tuple[str, list[str]]]:
    by_role: dict[str, list[str]] = {}
    for name in sorted(times):
        if times[name].wall_s > 0:  # else it has not answered yet
            by_role.setdefault(times[name].role, []).append(name)
    for role, names in sorted(by_role.items(), key=lambda item: item[1]):
        if len(names) > MOST_OF_A_ROLE:
            yield f"{role.replace('_', ' ')}, mean of {len(names)}", names
        else:
            yield from ((name, [name]) for name in names)


def _spent(now: _Times, before: _Times | None) -> tuple[float, dict[str, float]]:
    """Wall time since `before`, or of all time, and what of it went where.

    A call that began earlier and was answered since gave all its seconds to its stages at once;
    what lay before is taken off them in equal proportion.
    """
    if before is None:
        before = _Times(now.role, 0.0, {}, {})
    stages = {s: max(0.0, v - before.stages.get(s, 0.0)) for s, v in now.stages.items()}
    under_way: dict[str, float] = {}
    earlier = 0.0
    for method in {*now.at_work, *before.at_work}:
        gained = now.at_work.get(method, 0.0) - before.at_work.get(method, 0.0)
        if gained > 0:
            under_way[f"{method} (under way)"] = gained
        earlier += max(0.0, -gained)
    total = sum(stages.values())
    kept = max(0.0, total - earlier) / total if total > 0 else 0.0
    return now.wall_s - before.wall_s, {s: v * kept for s, v in stages.items()} | under_way


def _parts(role: str, spent: Iterable[tuple[float, Mapping[str, float]]]) -> list[JsonValue]:
    """Shares of the summed wall time; together 1, but for the driver, who may wait elsewhere."""
    wall_s, sums = 0.0, dict[str, float]()
    for wall, stages in spent:
        wall_s += wall
        for stage, seconds in stages.items():
            sums[stage] = sums.get(stage, 0.0) + seconds
    used = sum(sums.values())
    if role != DRIVER:
        sums[IDLE.get(role, "idle")] = max(0.0, wall_s - used)
    whole = max(wall_s, used, 1e-9)
    return [_part(stage, seconds / whole) for stage, seconds in sums.items()]


def _part(stage: str, share: float) -> JsonValue:
    """A stage that is called after what it waits for, or one with words of its own, is no work."""
    waited_for = stage.removesuffix("-wait")
    is_wait = stage in WORDS or waited_for != stage
    words = WORDS.get(stage) or (f"waits for {waited_for}" if is_wait else stage)
    return {"what": words.replace("_", " "), "is_wait": is_wait, "share": share}


def _rows_of_record(metrics: Section) -> list[JsonValue]:
    parts: dict[str, list[JsonValue]] = {}
    for name, value in sorted(metrics.items()):
        percent = _number(value)
        kind = next((k for k in (WORK, WAIT) if name.startswith(k)), None)
        if kind is None or percent is None:
            continue
        process, _, stage = name.removeprefix(kind).rpartition("/")
        if kind == WAIT:
            stage = "limiter-wait" if stage == LIMITER else f"{stage}-wait"
        parts.setdefault(process, []).append(_part(stage, percent / 100.0))
    return [{"name": name.replace("_", " "), "parts": parts[name]} for name in sorted(parts)]


def _number(value: object) -> float | None:
    """In plain size: seconds and percent that are larger are none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e15 else None
