"""A checkpoint that may not be made now is told of, whoever wanted it."""

import pytest

from launch.control.call_book import CallBook
from launch.control.checkpoint import CheckpointStore
from launch.control.checkpointer import Checkpointer
from launch.control.config import ControlConfig
from launch.control.progress import Progress


class Run:
    remote = None

    def __init__(self, folder) -> None:
        self.checkpoints = CheckpointStore(folder, keep=1)


class Reporter:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def event(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))


class Clock:
    def now(self) -> float:
        return 5.0


@pytest.mark.parametrize("is_asked", [True, False])
def test_one_that_a_learner_forbids_is_an_event(tmp_path, is_asked):
    reporter, reasons = Reporter(), []

    def may_save(reason: str) -> bool:
        reasons.append(reason)
        return False

    checkpointer = Checkpointer(
        ControlConfig(),
        CallBook(Clock(), 300.0),
        Run(tmp_path / "checkpoints"),
        fleet=None,
        progress=Progress(1),
        limiter=None,
        shards=None,
        reporter=reporter,
        may_save=(may_save,),
        on_failure=lambda failure: None,
    )
    checkpointer.is_asked = is_asked
    checkpointer.save_or_go_on(since=5.0, idle_since=5.0)
    assert reasons == ["asked for" if is_asked else "periodic"]
    ((kind, fields),) = reporter.events
    assert kind == "checkpoint_failed" and "not finite" in fields["cause"]
    assert fields["newest"] == "none"
    assert not checkpointer.is_asked and not checkpointer.is_due
