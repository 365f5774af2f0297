"""Seconds of wall time by process and stage, over a whole run and since the last look.

Fed with what children say of their calls and with how long calls took; costs some additions a call.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

DRIVER = "driver"
# What children call their stages, as the table of a run has it.
STAGES = {
    "prior_ask": "prior",
    "prior_wait": "prior-wait",
    "search_wait": "search-wait",
    "pull": "transfer",
    "compute": "train",
    "sample_wait": "sample-wait",
    "fetch": "sample-wait",
}
# Whoever has nothing to do waits: an env actor until more may be inserted, and so on.
IDLE = {
    "env_actor": "insert-wait",
    "learner": "limiter-wait",
    "language_learner": "turn-wait",
    # Those who serve other processes: the driver does not see what these ask.
    **dict.fromkeys(("replay", "search", "weight_server", "prior_engine"), "others-or-idle"),
}
REPORTING = ("env_actor", "learner", "reanalyser")
UNSTAGED = {  # calls whose answers do not say where their time went
    "save": "checkpoint",
    "load": "checkpoint",
    "load_matching": "checkpoint",
    "roll_back": "checkpoint",
    "evaluate": "evaluate",
    "add": "add",
    "publish": "publish",
}


@dataclass(slots=True)
class ProcessTimes:
    """Of one process and all that took its place.

    since: when it first answered, on the run's clock
    seconds, calls: by stage
    """

    role: str
    since: float
    seconds: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] += seconds
        self.calls[stage] += 1


class TimeBook:
    """Used from the driver's one thread."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.processes: dict[str, ProcessTimes] = {DRIVER: ProcessTimes(DRIVER, now)}
        self._looked_at = now
        self._at_look: dict[str, Counter[str]] = {}

    def answered(
        self, name: str, role: str, method: str, now: float, seconds: float, answer: object
    ) -> None:
        """A call was answered after `seconds` of work at it, waits in a queue left out.

        The first one has waited for the process to start.
        """
        times = self.processes.get(name)
        is_first = times is None
        if times is None:
            times = self.processes[name] = ProcessTimes(role, now - seconds)
        stages = getattr(answer, "seconds", None)
        if isinstance(stages, Mapping):
            self._add_stages(times, stages)
        elif is_first:
            times.add("start", seconds)
        elif method in UNSTAGED:
            times.add(UNSTAGED[method], seconds)

    def driver(self, stage: str, seconds: float) -> None:
        self.processes[DRIVER].add(stage, seconds)

    def metrics(self, now: float) -> dict[str, float]:
        """Percent of wall time since the last call, mean over a role, as a run's records have it.

        Without the stages that env actors, learner and reanalyser report by themselves.
        """
        metrics = {}
        for name, share in self._shares(now).items():
            role, _, stage = name.partition("/")
            if role in REPORTING and stage != "checkpoint":
                continue
            waited = stage.removesuffix("-wait")
            kind = "time_percent" if waited == stage else "wait_percent"
            metrics[f"{kind}/{role}/{waited}"] = share
        return metrics

    def _shares(self, now: float) -> dict[str, float]:
        """Since the last call, by "<role>/<stage>"."""
        elapsed = max(now - self._looked_at, 1e-9)
        sums: defaultdict[str, float] = defaultdict(float)
        members = Counter(times.role for times in self.processes.values())
        for name, times in self.processes.items():
            before = self._at_look.get(name, Counter())
            for stage, seconds in times.seconds.items():
                share = 100.0 * (seconds - before[stage]) / elapsed
                sums[f"{times.role}/{stage}"] += share / members[times.role]
            self._at_look[name] = times.seconds.copy()
        self._looked_at = now
        return dict(sums)

    def stages(self, name: str, now: float) -> dict[str, tuple[float, int]]:
        """Seconds and calls by stage of one process, with the rest of its time as what it waits
        for; the longest first.
        """
        times = self.processes[name]
        rows = {stage: (seconds, times.calls[stage]) for stage, seconds in times.seconds.items()}
        idle = IDLE.get(times.role, "idle")
        if idle not in rows:
            rest = now - times.since - sum(times.seconds.values())
            rows[idle] = (max(0.0, rest), 0)
        return dict(sorted(rows.items(), key=lambda row: -row[1][0]))

    def _add_stages(self, times: ProcessTimes, stages: Mapping[str, float]) -> None:
        """`total` is the whole call: what no stage of it has is the call's own work."""
        known = 0.0
        for stage, seconds in stages.items():
            if stage != "total":
                times.seconds[STAGES.get(stage, stage)] += seconds
                known += seconds
        for stage in {STAGES.get(stage, stage) for stage in stages if stage != "total"}:
            times.calls[stage] += 1
        if "total" in stages:
            times.add("other", max(0.0, stages["total"] - known))
