"""What a run left on disk, read for its report: old, half-written and strange records are skipped.

Nothing is written, and nothing of the run has to be complete.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from launch.config import ConfigError, to_dict
from launch.control.checkpoint import METADATA, CheckpointStore
from launch.control.run_search import CHECKPOINTS_FOLDER, is_in_use
from launch.control.stored_settings import LARGEST_FILE_BYTES, read_settings_file
from launch.monitoring.json_lines import JsonLinesReader, JsonValue, parse_json
from launch.monitoring.metrics_writer import EVENTS_FILE, METRICS_FILE
from launch.monitoring.rotation import part_numbers
from launch.monitoring.run_state import has_failed, newest_timestamp, number, state_of_run

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
VIDEOS_FOLDER = "videos"
EVALUATIONS_FOLDER = "evaluations"
MOST_BYTES = 64 << 20  # of a file that was never put aside; of a larger one its end is read
LARGEST_EVALUATION_BYTES = 32 << 20

Record = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run.

    state: finished, stopped, failed, running, or ended without a word
    metrics: by growing global_step; what a resume went back behind is left out
    settings: by dotted name; {} if config.yaml can't be read
    n_skipped: lines that are no records
    is_whole: false if only the end of a long file was read
    """

    path: Path
    state: str
    metrics: list[Record]
    events: list[Record]
    settings: Mapping[str, JsonValue]
    config_text: str
    versions: Mapping[str, str]
    evaluation: Record
    summary: Record
    n_skipped: int
    is_whole: bool
    videos: Mapping[int, Path] = field(default_factory=dict)  # by env steps

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def events_of(self, kind: str) -> list[Record]:
        return [event for event in self.events if event.get("event") == kind]

    def series(
        self, name: str, over: str = "global_step", *, first: bool = False
    ) -> list[tuple[float, float | None]]:
        """(`over`, value) where records have this figure, one value a step; [] if none has.

        first: of records with one step the first counts, not the last
        """
        found: dict[float, float | None] = {}
        for record in self.metrics:
            x = number(record.get(over))
            if name in record and x is not None and not (first and x in found):
                found[x] = number(record[name])
        return sorted(found.items()) if any(v is not None for v in found.values()) else []

    def windows(self) -> Iterator[tuple[float, Record]]:
        """(seconds, record) of every record but the first, whose window has no known beginning.

        A pause between two parts of a run counts as five ordinary windows at most.
        """
        times = [number(record.get("timestamp")) for record in self.metrics]
        spans = sorted(b - a for a, b in pairwise(times) if a and b and b > a)
        for (before, now), record in zip(pairwise(times), self.metrics[1:], strict=True):
            if before and now and now > before:
                yield min(now - before, 5 * spans[len(spans) // 2]), record

    def rate(self, counter: str) -> float | None:
        """How far a counter rose per second, over the records that go on from each other."""
        values = [v for _, v in self.series(counter) if v is not None]
        seconds = sum(span for span, _ in self.windows())
        return (values[-1] - values[0]) / seconds if seconds and values else None

    def last(self, name: str) -> float | None:
        """The newest value of a figure."""
        return next((v for _, v in reversed(self.series(name)) if v is not None), None)


def read_run(path: Path) -> RunRecord:
    """Never raises for what the files hold; a run without files is an empty one."""
    metrics, skipped_metrics, whole_metrics = _read_lines(path / METRICS_FILE)
    events, skipped_events, whole_events = _read_lines(path / EVENTS_FILE)
    summary = _read_object(path / SUMMARY_FILE, LARGEST_FILE_BYTES)
    config_text = _read_text(path / CONFIG_FILE, LARGEST_FILE_BYTES)
    return RunRecord(
        path=path,
        state=_state(path, newest_timestamp(*metrics[-1:], *events[-1:]), events),
        metrics=_onward(metrics),
        events=events,
        settings=_settings(path / CONFIG_FILE),
        config_text=config_text,
        versions=_versions(path),
        evaluation=_newest_evaluation(path / EVALUATIONS_FOLDER),
        summary=summary,
        n_skipped=skipped_metrics + skipped_events,
        is_whole=whole_metrics and whole_events,
        videos=_videos(path / VIDEOS_FOLDER),
    )


def _read_lines(path: Path) -> tuple[list[Record], int, bool]:
    """Records, how many lines are none, and whether that is all that was written."""
    parts, start = part_numbers(path), 0
    older = parts[:-1]  # files put aside for their size, of which the newest is read
    if not parts and path.is_file():
        start = max(0, path.stat().st_size - MOST_BYTES)
    reader = JsonLinesReader(path, start=start, after_part=max(older, default=0))
    records = reader.read_new()
    # A start within a line leaves the rest of it, which is no record.
    return records, max(0, reader.n_skipped - (start > 0)), start == 0 and not older


def _onward(records: Iterable[Record]) -> list[Record]:
    kept: list[Record] = []
    for record in records:
        step = number(record.get("global_step"))
        if step is None:
            continue
        while kept and (number(kept[-1]["global_step"]) or 0.0) > step:
            kept.pop()
        kept.append(record)
    return kept


def _state(path: Path, newest: float | None, events: list[Record]) -> str:
    """Of one that has not ended, the lock says whether its process lives."""
    state = state_of_run(path, newest, has_failed=has_failed(events), now=time.time())
    if state in ("finished", "stopped", "failed"):
        return state
    return "running" if is_in_use(path) else "ended without a word"


def _settings(path: Path) -> dict[str, JsonValue]:
    try:
        stored = read_settings_file(path)
    except ConfigError:
        return {}
    return dict(_flat(to_dict(stored.config), "")) | dict(stored.unknown)


def _flat(node: Mapping[str, object], prefix: str) -> Iterable[tuple[str, JsonValue]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _versions(path: Path) -> dict[str, str]:
    """Of the libraries that the newest checkpoint was written with."""
    newest = CheckpointStore(path / CHECKPOINTS_FOLDER, keep=1).newest()
    if newest is None:
        return {}
    found = _read_object(newest / METADATA, LARGEST_FILE_BYTES).get("versions")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _newest_evaluation(folder: Path) -> Record:
    """What launch/evaluate.py wrote last."""
    files = [(f.stat().st_mtime, f) for f in folder.glob("[!.]*.json")] if folder.is_dir() else []
    return _read_object(max(files)[1], LARGEST_EVALUATION_BYTES) if files else {}


def _videos(folder: Path) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.glob("evaluation-*.mp4")) if folder.is_dir() else ():
        steps = path.stem.rpartition("-")[2]
        if steps.isdigit():
            found[int(steps)] = path
    return found


def _read_object(path: Path, most_bytes: int) -> Record:
    """{} if there is no JSON object."""
    try:
        if path.stat().st_size > most_bytes:
            return {}
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_text(path: Path, most_bytes: int) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(most_bytes).decode("utf-8", "replace")
    except OSError:
        return ""


def as_text(value: object) -> str:
    """Plain data on one line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
