"""The metric files: what is on disk, also after crashes and with a full disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.monitoring.json_lines import JsonLinesFile, JsonLinesReader, to_json_value
from launch.monitoring.metrics_writer import MetricsWriter

FULL_DISK = Path("/dev/full")  # every write to it fails like a full disk


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_record_holds_finite_numbers_or_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, clock=lambda: 5.0) as writer:
        metrics = {"a": math.nan, "b": math.inf, "c": np.float32(0.5), "d": np.int64(3), "e": None}
        writer.write({**metrics, "f": "why"}, update=2, global_step=64)
    (record,) = read_lines(tmp_path / "metrics.jsonl")
    assert record == {
        "timestamp": 5.0,
        "update": 2,
        "global_step": 64,
        **{"a": None, "b": None, "c": 0.5, "d": 3, "e": None, "f": "why"},
    }
    assert isinstance(record["d"], int)


def test_events_are_lines_of_their_own_file(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False, clock=lambda: 5.0) as writer:
        writer.event("episode", total_reward=np.float32(1.5), end_reason="flag")
        writer.event("restart", process="env_actor_1", cause={"kind": "died", "codes": (1, 2)})
    assert read_lines(tmp_path / "events.jsonl") == [
        {"timestamp": 5.0, "event": "episode", "total_reward": 1.5, "end_reason": "flag"},
        {
            "timestamp": 5.0,
            "event": "restart",
            "process": "env_actor_1",
            "cause": {"kind": "died", "codes": [1, 2]},
        },
    ]


def test_reserved_and_unprintable_metrics_are_refused(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match="global_step"):
            writer.write({"global_step": 1.0}, update=0, global_step=0)
        with pytest.raises(TypeError, match="has no JSON form"):
            writer.write({"a": object()}, update=0, global_step=0)  # type: ignore[dict-item]
    assert to_json_value(np.bool_(True)) is True


@pytest.mark.parametrize("torn", ['{"update": 7, "lo', '{"a": 1}\n{"b"', "", "x" * 200_000])
def test_resume_appends_after_cutting_a_torn_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 6}\n' + torn)
    with MetricsWriter(tmp_path, resumed_at_step=32) as writer:
        writer.write({"loss_total": 1.0}, update=7, global_step=33)
    records = read_lines(path)
    assert records[0] == {"update": 6}
    assert (records[-1]["update"], records[-1]["loss_total"]) == (7, 1.0)
    assert len(records) == 2 + torn.count("\n")


def test_full_disk_warns_once_and_never_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("metrics.jsonl", "events.jsonl"):
        (tmp_path / name).symlink_to(FULL_DISK)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(3):
            writer.write({"a": 1.0}, update=step, global_step=step)
            writer.event("checkpoint", step=step)
        assert writer.n_lost == 6
    assert len(caplog.records) == 2
    assert "the run goes on" in caplog.text


def test_disk_that_has_room_again_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "late" / "metrics.jsonl"
    file = JsonLinesFile(path)
    assert not file.append({"a": 1})
    path.parent.mkdir()
    assert file.append({"a": 2})
    assert file.n_lost == 1 and read_lines(path) == [{"a": 2}]
    file.close()


def test_partial_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from launch.monitoring import json_lines

    file = JsonLinesFile(tmp_path / "metrics.jsonl")
    assert file.append({"a": 1})
    whole_write = os.write
    monkeypatch.setattr(json_lines.os, "write", lambda fd, data: whole_write(fd, data[:4]))
    assert not file.append({"a": 2})
    monkeypatch.undo()
    assert file.append({"a": 3})
    assert read_lines(file.path) == [{"a": 1}, {"a": 3}]
    file.close()


def test_unwritable_tensorboard_warns_once_and_keeps_jsonl(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with MetricsWriter(tmp_path) as writer:
        for step in range(3):
            writer.write({"a": 1.0}, update=step, global_step=step)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
    assert [r.message.count("TensorBoard") for r in caplog.records] == [1]


def test_tensorboard_reads_scalars_and_start_text(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in (10, 20):
            writer.write({"loss_total": step / 8, "gap": None}, update=step, global_step=step)
    with MetricsWriter(tmp_path, resumed_at_step=15) as writer:
        writer.write({"loss_total": 9.0}, update=16, global_step=16)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss_total"]
    scalars = [(event.step, event.value) for event in events.Scalars("loss_total")]
    assert scalars == [(10, 1.25), (16, 9.0)], "what lies beyond the checkpoint is dropped"
    assert "meta/started" in events.Tags()["tensors"]


def test_reader_follows_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = JsonLinesReader(path)
    assert reader.read_new() == []
    path.write_text('{"a": 1}\nnot json\n[1]\n{"a"')
    assert reader.read_new() == [{"a": 1}]
    assert reader.n_skipped == 2
    with path.open("a") as stream:
        stream.write(": 2}\n")
    assert reader.read_new() == [{"a": 2}]
    assert reader.read_new() == []
    path.write_text('{"a": 3}\n')
    assert reader.read_new() == [{"a": 3}], "a file that got shorter is a new one"
