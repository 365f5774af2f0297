"""Runs that differ in their seed alone are one group: their curves become one with a spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.monitoring.json_lines import JsonValue
from launch.reports.run_record import RunRecord

# What may differ within a group: chance, place, and how a run was started.
NOT_THE_SETUP = ("seed", "run_dir", "resume", "resume_relaxed", "address")
ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Group:
    label: str
    runs: tuple[RunRecord, ...]


def groups_of(runs: Sequence[RunRecord]) -> list[Group]:
    """In order of appearance. A run whose settings can't be read is a group of its own."""
    by_setup: dict[object, list[RunRecord]] = {}
    for index, run in enumerate(runs):
        by_setup.setdefault(_setup(run) or index, []).append(run)
    labels = [_label(group) for group in by_setup.values()]
    return [
        Group(label if labels.count(label) == 1 else f"{label} #{index + 1}", tuple(group))
        for index, (label, group) in enumerate(zip(labels, by_setup.values(), strict=True))
    ]


def differing_settings(groups: Sequence[Group]) -> list[tuple[str, list[JsonValue]]]:
    """(setting, its value in each group) where the groups do not agree."""
    settings = [group.runs[0].settings for group in groups]
    names = sorted({name for found in settings for name in found} - set(NOT_THE_SETUP))
    rows = [(name, [found.get(name, ABSENT) for found in settings]) for name in names]
    return [(name, values) for name, values in rows if any(v != values[0] for v in values)]


def _setup(run: RunRecord) -> tuple[tuple[str, str], ...]:
    kept = (item for item in run.settings.items() if item[0] not in NOT_THE_SETUP)
    return tuple(sorted((name, repr(value)) for name, value in kept))


def _label(group: Sequence[RunRecord]) -> str:
    if len(group) == 1:
        return group[0].name
    names = [run.name for run in group]
    n_alike = next(
        (i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1),
        min(map(len, names)),
    )
    shared = names[0][:n_alike].rstrip("-_0123456789")
    return f"{shared or names[0]} ({len(names)} runs)"
