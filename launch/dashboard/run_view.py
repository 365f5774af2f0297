"""A run directory as the live page shows it: read again and again, never written here.

Works on a running, a stopped and a finished run alike. Old, half-written and strange records are
skipped or shown as gaps; files that are missing leave their part of the page empty.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from launch.dashboard.checkpoint_list import CheckpointList
from launch.dashboard.time_shares import TimeShares
from launch.monitoring.json_lines import JsonLinesReader, JsonValue, parse_json
from launch.monitoring.metrics_writer import EVENTS_FILE, METRICS_FILE
from launch.monitoring.monitor import HEARTBEAT_FILE
from launch.monitoring.rotation import part_numbers
from launch.monitoring.run_state import failed_after, newest_timestamp, number, state_of_run
from launch.tracing.times_file import TIMES_FILE

CONFIG_FILE = "config.yaml"
LIVE_FILE = "live.json"
SETTINGS_FILE = "live-settings.json"
MAX_POINTS = 400  # per curve sent to a browser; more than a screen has pixels to show
MAX_EVENTS = 60
MAX_LIVE_BYTES = 4 << 20  # of a file that is replaced as a whole
MAX_BEAT_BYTES = 1 << 20  # a heartbeat of some thousand processes; only the newest is shown
ENDED_STATES = ("finished", "stopped", "failed")

CURVES: dict[str, tuple[str, ...]] = {
    "return": ("avg_return", "recent_return_p90", "eval_return_mean"),
    "max x (pixels)": ("env_mean_x_pos", "env_max_x_pos", "eval_max_x_mean"),
    "losses (nats)": ("loss_total", "loss_policy", "loss_value", "loss_reward", "loss_latent"),
    "speed (1/s)": ("env_steps_per_sec", "updates_per_sec"),
    "policy entropy (nats)": ("entropy",),
    "learning rate": ("learning_rate",),
    "replay priorities (reward)": ("replay_priority_p50", "replay_priority_p90"),
    "LLM prior latency (ms)": ("prior_latency_ms_p50", "prior_latency_ms_p99"),
    "LLM loss (nats)": ("language_loss", "language_kl"),
}
_COLUMNS = ("global_step", *(name for names in CURVES.values() for name in names))
Section = dict[str, JsonValue]


class NotARunError(ValueError):
    """The folder can't be shown; the message says why and what could be."""


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (CONFIG_FILE, METRICS_FILE, EVENTS_FILE))


def check_run(path: Path) -> None:
    """Raises NotARunError unless `path` is a run directory that can be read."""
    try:
        path.stat()
        if not path.is_dir():
            raise NotARunError(f"{path} is a file, not a run directory")
        entries = sorted(path.iterdir())
        if is_run(path):
            return
    except FileNotFoundError as error:
        raise NotARunError(
            f"{path} does not exist; name a folder that a run writes, e.g. runs/NAME"
        ) from error
    except OSError as error:
        raise NotARunError(
            f"{path} can't be read: {error.strerror}; name a folder that a run writes and that "
            "you may read"
        ) from error
    runs = [str(entry) for entry in entries if _is_readable_run(entry)]
    hint = "; runs inside it: " + ", ".join(runs[:8]) if runs else ""
    raise NotARunError(
        f"{path} is not a run directory: it has no {CONFIG_FILE} and no {METRICS_FILE}{hint}"
    )


def _is_readable_run(path: Path) -> bool:
    """A neighbour that can't be looked into, such as `lost+found`, is none to be named."""
    try:
        return path.is_dir() and is_run(path)
    except OSError:
        return False


class RunView:
    """Sections of the page as plain data, each with a version that grows when it changed.

    Used by the server under one lock; a refresh without news costs a few stat calls.
    """

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self.run_dir = run_dir
        self._clock = clock
        self._metrics = JsonLinesReader(run_dir / METRICS_FILE)
        self._events = JsonLinesReader(run_dir / EVENTS_FILE)
        self._heartbeats = _reader_of_the_end(run_dir / HEARTBEAT_FILE)
        self._time_shares = TimeShares()
        self._rows: list[tuple[float | None, ...]] = []
        self._latest: Section = {}
        self._beat: Section = {}
        self._recent_events: deque[Section] = deque(maxlen=MAX_EVENTS)
        self._has_failed = False
        self._restarts: Counter[str] = Counter()
        self._failed_at: dict[str, float | None] = {}  # the last time, by child
        self._checkpoints = CheckpointList(run_dir)
        self._stamps: dict[str, tuple[int, int]] = {}  # of files that are replaced, as last read
        self._too_large: dict[str, JsonValue] = {}  # what to say of such a file, by its name
        self._sections: dict[str, tuple[int, Section]] = {}

    def refresh(self) -> None:
        """Reads what was appended since the last call."""
        records = beats = events = 0
        for record in self._metrics.iter_new():
            self._add_metrics(record)
            records += 1
        for beat in self._heartbeats.iter_new():
            self._beat = beat
            beats += 1
        for event in self._events.iter_new():
            self._add_event(event)
            events += 1
        state = self.state
        self._set("status", self._status(state))
        if records or "curves" not in self._sections:
            self._set("curves", self._curves())
            self._set("figures", self._latest)
        if records or beats or events or "fleet" not in self._sections:
            self._set("fleet", {"processes": self._fleet()})
        if events or "events" not in self._sections:
            self._set("events", {"events": list(self._recent_events)[::-1]})
        self._set("checkpoints", {"checkpoints": self._checkpoints.rows()})
        self._read_files_that_are_replaced()
        waits = self._time_shares.section(self._latest, has_ended=state in ENDED_STATES)
        self._set("waits", waits)
        self._set("notes", {"notes": list(self._too_large.values())})

    def _read_files_that_are_replaced(self) -> None:
        live = self._read_replaced(LIVE_FILE)
        if live is not None:
            self._set("live", {"environments": _environments(live)})
        settings = self._read_replaced(SETTINGS_FILE)
        if settings is not None:
            self._set("settings", settings)
        times = self._read_replaced(TIMES_FILE)
        if times is not None:
            self._time_shares.add(times)

    def changed_since(self, seen: dict[str, int]) -> list[Section]:
        """Messages for a browser that has `seen` these versions; brings `seen` up to date."""
        messages: list[Section] = []
        for kind, (version, section) in self._sections.items():
            if seen.get(kind) != version:
                seen[kind] = version
                messages.append({"kind": kind, "data": section})
        return messages

    def _set(self, kind: str, section: Section) -> None:
        version, old = self._sections.get(kind, (0, None))
        if section != old:
            self._sections[kind] = (version + 1, section)

    def _add_metrics(self, record: Section) -> None:
        row = tuple(number(record.get(name)) for name in _COLUMNS)
        step = row[0]
        if step is None:
            return
        while self._rows and self._rows[-1][0] > step:  # resumed from an earlier checkpoint
            self._rows.pop()
        self._rows.append(row)
        self._latest = record

    def _add_event(self, event: Section) -> None:
        self._recent_events.append(event)
        self._has_failed = failed_after(event, self._has_failed)
        if event.get("event") == "child_failed":
            self._restarts[str(event.get("child"))] += 1
            self._failed_at[str(event.get("child"))] = number(event.get("timestamp"))
        elif event.get("event") == "checkpoint":
            self._checkpoints.told(event)

    @property
    def state(self) -> str:
        """As `state_of_run` has it, by all that was read until the last refresh."""
        newest, now = self._newest, self._clock()
        return state_of_run(self.run_dir, newest, has_failed=self._has_failed, now=now)

    @property
    def _newest(self) -> float | None:
        return newest_timestamp(self._latest, self._beat, *list(self._recent_events)[-1:])

    def _status(self, state: str) -> Section:
        return {"run": self.run_dir.resolve().name, "state": state, "newest": self._newest}

    def _curves(self) -> Section:
        stride = max(1, -(-len(self._rows) // MAX_POINTS))
        rows = self._rows[::-1][::stride][::-1]  # always with the newest
        columns = {name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)}
        charts: list[JsonValue] = []
        for title, names in CURVES.items():
            lines = {n: columns[n] for n in names if any(v is not None for v in columns[n])}
            if lines:
                charts.append({"title": title, "lines": lines})
        return {"step": columns["global_step"], "charts": charts}

    def _fleet(self) -> list[JsonValue]:
        beats = self._beat.get("processes")
        beats = beats if isinstance(beats, dict) else {}
        prefix = "rss_mb/"
        measured = {n.removeprefix(prefix) for n in self._latest if n.startswith(prefix)}
        rows: list[JsonValue] = []
        for name in sorted(set(beats) | measured):
            beat = beats.get(name)
            beat = beat if isinstance(beat, dict) else {}
            age_s = number(beat.get("age_s"))
            written = number(self._beat.get("timestamp"))
            rows.append(
                {
                    "name": name,
                    "phase": beat.get("phase"),
                    "state": beat.get("state"),
                    "beat_at": written - age_s if written and age_s is not None else None,
                    "is_stalled": beat.get("is_stalled") is True,
                    "cpu_percent": self._usage(beat, "cpu_percent", name),
                    "rss_mb": self._usage(beat, "rss_mb", name),
                    "restarts": self._restarts[name],
                    "failed_at": self._failed_at.get(name),
                }
            )
        return rows

    def _usage(self, beat: Section, figure: str, process: str) -> float | None:
        """Of one process; older runs have it in their metrics."""
        now = number(beat.get(figure))
        return number(self._latest.get(f"{figure}/{process}")) if now is None else now

    def _read_replaced(self, name: str) -> Section | None:
        """The content of a file that is replaced as a whole; None without news."""
        path = self.run_dir / name
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamps.get(name):
                return None
            self._too_large.pop(name, None)
            if stat.st_size > MAX_LIVE_BYTES:
                self._too_large[name] = (
                    f"{name} has {stat.st_size:,} bytes, and this page reads {MAX_LIVE_BYTES:,} at "
                    "most: what it shows is older"
                )
                return None
            content = parse_json(path.read_bytes())
        except (OSError, ValueError):
            return None
        self._stamps[name] = stamp
        return content if isinstance(content, dict) else None


def _reader_of_the_end(path: Path) -> JsonLinesReader:
    """From some record before the newest on, which is in the newest part just after a rotation."""
    try:
        size_bytes = path.stat().st_size
    except OSError:
        size_bytes = 0
    put_aside = part_numbers(path)
    read = put_aside if size_bytes else put_aside[:-1]
    start = max(0, size_bytes - MAX_BEAT_BYTES)
    return JsonLinesReader(path, start=start, after_part=max(read, default=0))


def _environments(live: Section) -> list[JsonValue]:
    """One entry each; a file of an older run holds just one, and says nothing of whose it is."""
    shown = live.get("environments")
    if isinstance(shown, list):
        return [entry for entry in shown if isinstance(entry, dict)]
    return [{"actor": 0, "env": 0, **live}]
