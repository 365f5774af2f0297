"""What a run leaves on disk while it runs: metrics.jsonl, events.jsonl and TensorBoard files.

Owned by the controller's process and called from its one thread. Names are listed in
docs/metrics.md. Nothing here ever ends a run: what can't be written is reported once and dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from launch.monitoring.json_lines import JsonLinesFile, Scalar, to_json_value
from launch.monitoring.rotation import Rotation
from launch.monitoring.sinks import BackgroundSink, GuardedSink
from launch.monitoring.tensorboard_file import TensorBoardFile

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
RECORD_KEYS = ("timestamp", "update", "global_step")

_log = logging.getLogger(__name__)


class MetricsWriter:
    """The single writer of a run's metrics and events; opening an old run continues its files."""

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool = True,
        resumed_at_step: int | None = None,
        sinks: Sequence[GuardedSink | BackgroundSink] = (),
        rotation: Rotation | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`run_dir` must exist. `resumed_at_step`: env steps of the checkpoint gone on from;
        `sinks`: where records go besides, closed with this; `rotation`: of metrics and events
        """
        self._clock = clock
        self._metrics = JsonLinesFile(run_dir / METRICS_FILE, rotation)
        self._events = JsonLinesFile(run_dir / EVENTS_FILE, rotation)
        self._sinks = sinks
        self._has_failed = False  # the run, by its own word
        self._tensorboard: TensorBoardFile | None = None
        self._n_lost_tensorboard = 0
        self.tensorboard_dir = run_dir / TENSORBOARD_FOLDER
        if tensorboard:
            self._open_tensorboard(resumed_at_step)

    @property
    def n_lost(self) -> int:
        """Records that could not be written, over all files."""
        n_lost = self._metrics.n_lost + self._events.n_lost + self._n_lost_tensorboard
        return n_lost + sum(sink.n_lost for sink in self._sinks)

    def write(self, metrics: Mapping[str, Scalar], *, update: int, global_step: int) -> None:
        """One record: `metrics` beside timestamp (Unix seconds), learner updates and env steps.

        NaN and infinities are written as null. Raises TypeError for a value with no JSON form and
        ValueError for a metric named like one of the record's own keys.
        """
        taken = set(metrics) & set(RECORD_KEYS)
        if taken:
            raise ValueError(f"metrics may not be named {sorted(taken)}: the record has these")
        head: dict[str, float] = {
            "timestamp": self._clock(),
            "update": update,
            "global_step": global_step,
        }
        self._metrics.append({**head, **metrics})
        plain = {name: to_json_value(value) for name, value in metrics.items()}
        numbers = {n: float(v) for n, v in plain.items() if isinstance(v, int | float)}
        if self._tensorboard is not None and numbers:
            self._try_tensorboard(lambda file: file.scalars(numbers, global_step))
        for sink in self._sinks:
            sink.write({**head, **numbers}, global_step)

    def event(self, kind: str, **fields: object) -> None:
        """One line of events.jsonl: an episode's end, a restart, a checkpoint, a version, ..."""
        self._has_failed |= kind == "failed"
        self._events.append({"timestamp": self._clock(), "event": kind, **fields})

    def text(self, tag: str, text: str, *, global_step: int) -> None:
        """A text for TensorBoard only."""
        if self._tensorboard is not None:
            self._try_tensorboard(lambda file: file.text(tag, text, global_step))

    def close(self) -> None:
        self._metrics.close()
        self._events.close()
        if self._tensorboard is not None:
            self._try_tensorboard(lambda file: file.close())
            self._tensorboard = None
        for sink in self._sinks:
            sink.close(has_failed=self._has_failed)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._has_failed |= error is not None
        self.close()

    def _open_tensorboard(self, resumed_at_step: int | None) -> None:
        try:
            self._tensorboard = TensorBoardFile(
                self.tensorboard_dir, resumed_at_step=resumed_at_step
            )
        except OSError as error:
            self._lose_tensorboard(error)
            return
        started = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(self._clock()))
        self.text("meta/started", started, global_step=resumed_at_step or 0)

    def _try_tensorboard(self, write: Callable[[TensorBoardFile], None]) -> None:
        """A torn record makes the rest of an event file unreadable, so the first error ends it."""
        assert self._tensorboard is not None
        try:
            write(self._tensorboard)
        except OSError as error:
            self._tensorboard = None
            self._lose_tensorboard(error)

    def _lose_tensorboard(self, error: OSError) -> None:
        self._n_lost_tensorboard += 1
        _log.warning(
            "[monitor] cannot write TensorBoard files in %s (%s); the run goes on without them",
            self.tensorboard_dir,
            error,
        )
