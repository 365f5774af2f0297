"""Where records go beside the run's own files: none ends a run, none holds it up."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import secrets
import threading
from collections.abc import Container, Mapping
from pathlib import Path

import pytest

from launch.monitoring.config import MonitoringConfig, check_trackers
from launch.monitoring.destinations import destinations
from launch.monitoring.metrics_writer import MetricsWriter
from launch.monitoring.sinks import MOST_WAITING, BackgroundSink, GuardedSink
from tests.e2e.artefacts import files_with

SECRET = secrets.token_hex(16)


class Shelf:
    """Keeps what it gets; may be slow, and fails when it is told to."""

    def __init__(self, fails_at: Container[int] = ()) -> None:
        self.steps: list[int] = []
        self.is_closed = False
        self.run_has_failed: bool | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_entered = threading.Event()
        self._fails_at = fails_at

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self.is_entered.set()
        self.may_go_on.wait(10)
        if step in self._fails_at:
            raise ConnectionError("no service")
        self.steps.append(step)

    def close(self, *, has_failed: bool) -> None:
        self.is_closed = True
        self.run_has_failed = has_failed


def test_a_sink_that_fails_is_told_of_once_and_closed_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(fails_at=range(2, 10))
    sink = GuardedSink("a shelf", lambda: shelf)
    with MetricsWriter(tmp_path, tensorboard=False, sinks=[sink]) as writer:
        for step in range(5):
            writer.write({"a": 1.0}, update=0, global_step=step)
        assert writer.n_lost == 3
    assert shelf.steps == [0, 1] and shelf.is_closed
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert [r.message.count("a shelf (ConnectionError: no service)") for r in caplog.records] == [1]


def test_a_sink_is_tried_again_less_and_less_often_and_told_of_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A record a second: two outages, of which the second is short."""
    now = [0.0]
    shelf = Shelf(fails_at=[*range(10, 500), 1000])
    sink = GuardedSink("a shelf", lambda: shelf, clock=lambda: now[0])
    for step in range(1100):
        now[0] = float(step)
        sink.write({}, step)
    # Tried again after 60 s, 120 s, 240 s and 480 s.
    back_at = 10 + 60 + 120 + 240 + 480
    assert shelf.steps == [*range(10), *range(back_at, 1000), *range(1060, 1100)]
    assert sink.n_lost == 1100 - len(shelf.steps)
    assert [r.message.partition(" shelf ")[2] for r in caplog.records] == [
        "(ConnectionError: no service); it is tried again once in a while",
        f"is written again; {back_at - 10} records are lost",
        "(ConnectionError: no service); it is tried again once in a while",
        "is written again; 60 records are lost",
    ]


def test_a_sink_that_can_not_be_opened_is_opened_later() -> None:
    now, shelves = [0.0], iter([None, Shelf()])

    def open_next() -> Shelf:
        shelf = next(shelves)
        if shelf is None:
            raise OSError("disk full")
        return shelf

    sink = GuardedSink("a shelf", open_next, clock=lambda: now[0])
    for step in range(100):
        now[0] = float(step)
        sink.write({}, step)
    assert sink.n_lost == 60


@pytest.mark.parametrize("how", ["well", "says so", "raises"])
def test_a_sink_hears_how_the_run_has_ended(tmp_path: Path, how: str) -> None:
    shelf, other = Shelf(), Shelf()
    sinks = [GuardedSink("a shelf", lambda: shelf), GuardedSink("another", lambda: other)]
    with (
        contextlib.suppress(ZeroDivisionError),
        MetricsWriter(tmp_path, tensorboard=False, sinks=[sinks[0], BackgroundSink(sinks[1])]) as w,
    ):
        w.write({"a": 1.0}, update=0, global_step=0)
        if how == "says so":
            w.event("failed", cause="x")
        elif how == "raises":
            raise ZeroDivisionError
    assert shelf.run_has_failed == other.run_has_failed == (how != "well")


def test_a_sink_that_can_not_be_opened_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Shelf:
        raise ModuleNotFoundError("no such package")

    sink = GuardedSink("a shelf", refuse)
    for step in range(3):
        sink.write({}, step)
    sink.close(has_failed=False)
    assert sink.n_lost == 3 and len(caplog.records) == 1


def test_a_slow_sink_holds_nobody_up_and_drops_what_is_too_much() -> None:
    shelf = Shelf()
    shelf.may_go_on.clear()
    sink = BackgroundSink(GuardedSink("a shelf", lambda: shelf))
    n_records = MOST_WAITING + 50
    sink.write({}, 0)
    assert shelf.is_entered.wait(20.0), "it has the first record in its hands"
    for step in range(1, n_records):
        sink.write({}, step)
    assert sink.n_lost == 49
    shelf.may_go_on.set()
    sink.close(has_failed=False)
    assert shelf.steps == list(range(n_records - sink.n_lost)) and shelf.is_closed


def test_a_sink_that_never_answers_does_not_keep_a_run_from_ending(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.monitoring.sinks.CLOSE_LIMIT_S", 0.05)
    shelf = Shelf()
    shelf.may_go_on.clear()
    sink = BackgroundSink(GuardedSink("a shelf", lambda: shelf))
    sink.write({}, 0)
    with caplog.at_level(logging.WARNING):
        sink.close(has_failed=False)
    assert "its last records are lost" in caplog.text
    shelf.may_go_on.set()


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def written(
    run_dir: Path, config: MonitoringConfig, steps: range, *, goes_on: bool = False
) -> None:
    """Records as a run writes them, to everything that `config` names."""
    run_dir.mkdir(exist_ok=True)
    sinks = destinations(
        config, run_dir, {"seed": 3, "search": {"mode": "local"}}, goes_on=goes_on, on_ray=False
    )
    with MetricsWriter(run_dir, tensorboard=False, sinks=sinks) as writer:
        for step in steps:
            metrics = {"loss_total": step / 8, "why": "text", "gap": None}
            late = {"stage_clear_rate/1-1": 0.5} if step > 2 else {}
            writer.write({**metrics, **late}, update=step, global_step=step)
        assert writer.n_lost == 0


def test_parquet_has_every_record_with_gaps_as_null_and_goes_on(tmp_path: Path) -> None:
    needs("pyarrow")
    from pyarrow import parquet

    written(tmp_path / "run", MonitoringConfig(), range(4))
    written(tmp_path / "run", MonitoringConfig(), range(4, 6), goes_on=True)
    table = parquet.read_table(tmp_path / "run" / "metrics" / "latest.parquet").to_pydict()
    assert table["global_step"] == [0, 1, 2, 3, 4, 5]
    assert table["loss_total"] == [step / 8 for step in range(6)]
    assert table["stage_clear_rate/1-1"] == [None, None, None, 0.5, 0.5, 0.5]
    assert "why" not in table and "gap" not in table


def test_parquet_keeps_the_newest_and_is_not_written_at_every_record(tmp_path: Path) -> None:
    needs("pyarrow")
    from pyarrow import parquet

    from launch.monitoring import parquet_file

    now = [0.0]
    path = tmp_path / "metrics" / "latest.parquet"
    file = parquet_file.ParquetFile(path, clock=lambda: now[0])
    file.write({"n": 0.0}, 0)
    first = path.stat().st_mtime_ns
    for n in range(1, 2 * parquet_file.MAX_ROWS + 10):
        file.write({"n": float(n)}, n)
    assert path.stat().st_mtime_ns == first
    now[0] = parquet_file.PERIOD_S
    file.write({"n": -1.0}, 0)
    column = parquet.read_table(path)["n"].to_pylist()
    assert len(column) == parquet_file.MAX_ROWS
    assert column[-2:] == [2 * parquet_file.MAX_ROWS + 9.0, -1.0]


def test_a_damaged_parquet_file_is_replaced(tmp_path: Path) -> None:
    needs("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "run" / "metrics" / "latest.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 and then nothing")
    written(tmp_path / "run", MonitoringConfig(), range(2))
    assert parquet.read_table(path)["global_step"].to_pylist() == [0, 1]


def test_wandb_offline_keeps_a_run_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("wandb")
    monkeypatch.setattr("launch.monitoring.sinks.CLOSE_LIMIT_S", 120.0)  # a cold import takes long
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    run_dir = tmp_path / "run"
    config = MonitoringConfig(wandb="offline")
    written(run_dir, config, range(4))
    written(run_dir, config, range(2, 5), goes_on=True)
    (identifier,) = {(run_dir / "wandb-run-id").read_text()}
    logs = list((run_dir / "wandb").glob(f"offline-run-*-{identifier}/run-{identifier}.wandb"))
    assert logs and b"loss_total" in b"".join(log.read_bytes() for log in logs)
    assert not files_with(SECRET, [run_dir])


def test_mlflow_in_a_folder_keeps_one_run_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    monkeypatch.setattr("launch.monitoring.sinks.CLOSE_LIMIT_S", 120.0)  # a cold import takes long
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")  # so that it is put back afterwards
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    run_dir, uri = tmp_path / "run", f"file:{tmp_path / 'mlruns'}"
    config = MonitoringConfig(mlflow_uri=uri)
    written(run_dir, config, range(4))
    written(run_dir, config, range(4, 6), goes_on=True)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("warpzone")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (run_dir / "mlflow-run-id").read_text()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "search.mode": "local"}
    history = client.get_metric_history(run.info.run_id, "loss_total")
    assert [(m.step, m.value) for m in history] == [(step, step / 8) for step in range(6)]


def test_mlflow_does_not_call_a_failed_run_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    monkeypatch.setattr("launch.monitoring.sinks.CLOSE_LIMIT_S", 120.0)  # a cold import takes long
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlruns'}"
    config = MonitoringConfig(mlflow_uri=uri)
    sinks = destinations(config, tmp_path, {}, goes_on=False, on_ray=False)
    with MetricsWriter(tmp_path, tensorboard=False, sinks=sinks) as writer:
        writer.write({"a": 1.0}, update=0, global_step=0)
        writer.event("failed", cause="x")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("warpzone")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers(MonitoringConfig())
    for config in (MonitoringConfig(wandb="offline"), MonitoringConfig(mlflow_uri="file:x")):
        with pytest.raises(ValueError, match="EXTRAS=trackers make setup"):
            check_trackers(config)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rotate_mb": 0.0}, "monitoring.rotate_mb must be above 0, got 0.0"),
        ({"rotate_mb": float("nan")}, "monitoring.rotate_mb must be above 0"),
        ({"keep_rotated": 0}, "monitoring.keep_rotated must be at least 1, got 0"),
        ({"wandb_project": ""}, "monitoring.wandb_project must not be empty"),
        ({"mlflow_uri": "http://me:secret@host"}, "monitoring.mlflow_uri holds a password"),
    ],
)
def test_settings_name_the_field(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        MonitoringConfig(**wrong)
    assert message in str(error.value) and "secret" not in str(error.value)
