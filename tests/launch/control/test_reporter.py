"""What the reporter writes and says of what it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from actors.collect_report import CollectReport
from launch.config import Config
from launch.control.construction import Construction
from launch.control.pacing import make_limiter
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.monitoring.live_table import LiveTable
from launch.monitoring.metrics_writer import MetricsWriter


class Told:
    """A reporter with real files, and what became of it."""

    def __init__(self, folder: Path, writer: MetricsWriter) -> None:
        self._folder = folder
        self._screen = io.StringIO()
        table = LiveTable("", Console(file=self._screen, width=200))
        construction = Construction(1, 4, lambda: 0.0)
        self.reporter = Reporter(folder, writer, table, period_s=1.0, construction=construction)

    def events(self, kind: str) -> list[dict]:
        lines = (self._folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def record(self) -> dict:
        self.reporter.report(Progress(1), make_limiter(Config()))
        return json.loads((self._folder / "metrics.jsonl").read_text().splitlines()[-1])

    @property
    def screen(self) -> str:
        return self._screen.getvalue()


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        yield Told(tmp_path, writer)


def test_a_lost_gpu_is_an_event_a_line_and_a_figure(told: Told) -> None:
    told.reporter.device("cuda", None)
    told.reporter.resources({"gpu_count": 1, "gpu_missing_reason": ""})
    assert told.record()["gpus_missing"] == 0
    told.reporter.resources({"gpu_count": 0, "gpu_missing_reason": "NVML: lost"})
    (event,) = told.events("gpu_lost")
    assert (event["gpus"], event["missing"], event["cause"]) == (0, 1, "NVML: lost")
    assert "[train] gpu_lost: gpus 0, missing 1, cause NVML: lost" in told.screen
    record = told.record()
    assert (record["gpus_missing"], record["learner_on_gpu"], record["fell_back_to_cpu"]) == (
        1,
        1,
        0,
    )


def test_a_fall_back_to_the_cpu_is_told(told: Told) -> None:
    told.reporter.device("cpu", "2 GPUs of this machine can't be used by PyTorch")
    assert len(told.events("fell_back_to_cpu")) == 1
    assert "fell_back_to_cpu: cause 2 GPUs" in told.screen
    record = told.record()
    assert (record["learner_on_gpu"], record["fell_back_to_cpu"]) == (0, 1)


def test_environments_are_told_of_on_the_terminal_and_weights_are_not(told: Told) -> None:
    told.reporter.child_state("env-actor-0", "", "starting", 0.0)
    told.reporter.child_state("env-actor-0", "starting", "healthy", 0.0)
    told.reporter.collected("env-actor-0", CollectReport(weight_version=5, made_s=(0.25, 1.0)))
    for version in (5, 3, 9):
        told.reporter.collected("env-actor-0", CollectReport(weight_version=version))
    assert told.screen.splitlines() == [
        "[env] constructing 0/4 ...",
        "[env] constructing 4/4, env-actor-0 after 0.0 s",
    ]
    (made,) = told.events("environments_made")
    assert (made["child"], made["count"], made["seconds"], made["slowest_s"]) == (
        "env-actor-0",
        2,
        1.25,
        1.0,
    )
    assert [event["version"] for event in told.events("weights")] == [5, 9]


def test_a_checkpoint_makes_its_age_young(told: Told) -> None:
    told.reporter.event("checkpoint", path="x", reason="periodic")
    assert told.record()["checkpoint_age_min"] < 0.1
    assert told.record()["processes_stalled"] == 0
