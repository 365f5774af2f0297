"""Figures of real processes, a pretended NVML, heartbeats under a clock of our own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from launch.monitoring.gpu_reader import GpuReader
from launch.monitoring.monitor import Heartbeat, Monitor, MonitorConfig
from launch.monitoring.monitor_actor import MonitorActor


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class NVMLError(Exception):
    pass


class FakeNvml:
    """Two GPUs whose utilisation follows `utils`; any query can be made to fail.

    As NVML itself it counts its users, and looks for GPUs when the first of them comes.
    """

    NVMLError = NVMLError

    def __init__(self, utils: list[int]) -> None:
        self.utils = utils
        self.n_reads = 0
        self.broken: set[str] = set()
        self.fallen_off: set[int] = set()
        self.n_users = 0
        self.known_as_lost: set[int] = set()

    def _check(self, query: str) -> None:
        if query in self.broken:
            raise NVMLError(f"{query} not supported")

    def nvmlInit(self) -> None:
        self._check("init")
        if self.n_users == 0:
            self.known_as_lost = set(self.fallen_off)
        self.n_users += 1

    def nvmlShutdown(self) -> None:
        if self.n_users == 0:
            raise NVMLError("not initialised")
        self.n_users -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._check("count")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self._check("memory")
        self.known_as_lost |= self.fallen_off
        if handle in self.known_as_lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(used=(handle + 1) << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        self._check("util")
        util = self.utils[min(self.n_reads // 2, len(self.utils) - 1)]
        self.n_reads += 1
        return SimpleNamespace(gpu=util)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 100_000


def test_gpu_reader_throttles_and_averages_over_its_window() -> None:
    clock, nvml = Clock(), FakeNvml([10, 20, 60, 60])
    reader = GpuReader(interval_s=1.0, window=3, nvml=nvml, clock=clock)
    assert reader.read().util_last == 10
    clock.now += 0.5
    reader.read()
    assert nvml.n_reads == 2, "one reading of two GPUs"
    for _ in range(3):
        clock.now += 1.0
        reading = reader.read()
    assert (reading.util_last, reading.mem_used_mb, reading.power_w) == (60, 3072, 200)
    assert reading.util_mean_window == pytest.approx((20 + 60 + 60) / 3)
    assert reading.missing_reason == ""


def test_gpu_reader_says_why_and_recovers() -> None:
    clock, nvml = Clock(), FakeNvml([50])
    reader = GpuReader(interval_s=1.0, window=3, nvml=nvml, clock=clock)
    nvml.broken = {"init"}
    assert reader.read().missing_reason == "NVML: init not supported"
    assert reader.read().util_last is None
    nvml.broken = {"util"}
    clock.now += 1.0
    reading = reader.read()
    assert (reading.util_last, reading.mem_used_mb) == (None, 3072)
    assert reading.missing_reason == "NVML: util not supported"
    nvml.broken = set()
    clock.now += 1.0
    assert reader.read().util_last == 50


def test_gpu_that_falls_off_is_not_counted_and_the_other_goes_on() -> None:
    clock, nvml = Clock(), FakeNvml([50])
    reader = GpuReader(interval_s=1.0, window=3, nvml=nvml, clock=clock)
    assert reader.read().count == 2
    nvml.fallen_off = {1}
    clock.now += 1.0
    reading = reader.read()
    assert (reading.count, reading.util_last, reading.mem_used_mb) == (1, 50, 1024)
    assert reading.missing_reason == "NVML, GPU 1: GPU is lost"
    nvml.fallen_off = {0, 1}
    clock.now += 1.0
    reading = reader.read()
    assert (reading.count, reading.util_last, reading.mem_used_mb) == (0, None, None)
    nvml.fallen_off = set()
    clock.now += 1.0
    assert reader.read().count == 2


def test_nvml_has_one_user_however_often_gpus_are_lost() -> None:
    clock, nvml = Clock(), FakeNvml([50])
    reader = GpuReader(interval_s=1.0, window=3, nvml=nvml, clock=clock)
    for fault in ("lost", "count", "lost", "init", "lost"):
        nvml.broken, nvml.fallen_off = set(), set()
        assert reader.read().count == 2 and nvml.n_users == 1
        nvml.broken, nvml.fallen_off = {fault}, {1} if fault == "lost" else set()
        for _ in range(3):
            clock.now += 1.0
            reader.read()
            assert nvml.n_users <= 1
        clock.now += 1.0


def test_machine_without_a_gpu_has_null_figures_and_a_reason() -> None:
    sample = Monitor().sample()
    if sample["gpu_missing_reason"] == "":
        pytest.skip("this machine has a GPU that NVML can read")
    assert sample["gpu_util_last"] is None and sample["gpu_mem_used_mb"] is None


def usage(monitor: Monitor, run_dir: Path) -> dict[str, dict]:
    """Of each process, by the heartbeat of a new sample."""
    monitor.sample()
    monitor.write_heartbeat()
    last = (run_dir / "heartbeat.jsonl").read_text().splitlines()[-1]
    return json.loads(last)["processes"]


def test_samples_processes_and_survives_their_death(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    monitor = Monitor(tmp_path)
    monitor.watch({"driver-0": os.getpid(), "child-0": child.pid, "ghost": 2**22 + 1})
    sample = usage(monitor, tmp_path)
    assert sample["driver-0"]["rss_mb"] > 10
    assert sample["driver-0"]["uss_mb"] <= sample["driver-0"]["rss_mb"]
    assert sample["child-0"]["cpu_percent"] is not None
    assert sample["ghost"]["rss_mb"] is None
    assert {"rss_mb_max/driver", "rss_mb_max/child"} <= set(monitor.sample())
    child.communicate()
    sample = usage(monitor, tmp_path)
    assert sample["child-0"]["rss_mb"] is None and sample["child-0"]["cpu_percent"] is None
    assert "rss_mb_max/child" not in monitor.sample()
    monitor.unwatch("child-0")
    assert "child-0" not in usage(monitor, tmp_path)


def test_a_process_of_another_machine_has_a_reason_and_no_strangers_figures(
    tmp_path: Path,
) -> None:
    monitor = Monitor(tmp_path)
    monitor.watch({"learner": os.getpid()}, socket.gethostname())
    monitor.watch({"env-actor-0": os.getpid()}, "another-machine")
    monitor.watch({"ghost": 2**22 + 1})
    sample = usage(monitor, tmp_path)
    assert sample["learner"]["rss_mb"] > 10 and "missing_reason" not in sample["learner"]
    there = sample["env-actor-0"]
    assert [there[name] for name in ("pid", "cpu_percent", "rss_mb", "uss_mb")] == [None] * 4
    assert there["missing_reason"].startswith("it is on another-machine; the monitor reads")
    assert sample["ghost"]["missing_reason"] == "it is gone"
    figures = monitor.sample()
    assert "rss_mb_max/env_actor" not in figures
    assert figures["memory_processes_mb"] <= 1.1 * figures["rss_mb_max/learner"]


GRANDCHILD = "held = bytearray(b'x') * (60 << 20)\nprint(flush=True)\nimport sys; sys.stdin.read()"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_process_counts_with_what_it_started_and_nobody_watches(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, GRANDCHILD]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        (grandchild,) = psutil.Process(child.pid).children()
        monitor = Monitor(tmp_path, MonitorConfig(uss_interval_s=1e-9))
        monitor.watch({"learner": child.pid})
        sample = usage(monitor, tmp_path)["learner"]
        assert sample["rss_mb"] > 60 and sample["uss_mb"] > 60
        monitor.watch({"search": grandchild.pid})
        sample = usage(monitor, tmp_path)
        assert sample["learner"]["uss_mb"] < 60 < sample["search"]["uss_mb"]
        child.stdin.close()


def test_objects_of_one_process_count_once_in_the_sum() -> None:
    monitor = Monitor()
    monitor.watch({"learner": os.getpid(), "replay-0": os.getpid()})
    figures = monitor.sample()
    assert figures["rss_mb_max/learner"] == figures["rss_mb_max/replay"]
    assert figures["cpu_percent_max/learner"] == figures["cpu_percent_max/replay"]
    assert figures["memory_processes_mb"] == pytest.approx(figures["uss_mb_max/learner"])


def test_restarted_process_gets_its_new_pid(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.watch({"actor": 2**22 + 1})
    assert usage(monitor, tmp_path)["actor"]["rss_mb"] is None
    monitor.watch({"actor": os.getpid()})
    assert usage(monitor, tmp_path)["actor"]["rss_mb"] > 10


@pytest.mark.parametrize("n_actors", [1, 30])
def test_record_does_not_grow_with_the_number_of_processes(n_actors: int) -> None:
    monitor = Monitor()
    monitor.watch({f"env-actor-{i}": os.getpid() for i in range(n_actors)})
    sample = monitor.sample()
    assert [name for name in sample if name.startswith("rss_mb")] == [
        "rss_mb_mean/env_actor",
        "rss_mb_max/env_actor",
    ]
    assert sample["rss_mb_mean/env_actor"] == pytest.approx(sample["rss_mb_max/env_actor"], rel=0.1)


def test_heartbeats_age_and_stall(tmp_path: Path) -> None:
    clock = Clock()
    monitor = Monitor(tmp_path, MonitorConfig(stall_after_s=60), clock=clock)
    monitor.beat("learner", "train")
    clock.now += 50
    monitor.beat("env_actor_0", "collect", age_s=5)
    assert monitor.heartbeats() == [
        Heartbeat("learner", "train", 50),
        Heartbeat("env_actor_0", "collect", 5),
    ]
    assert monitor.stalled() == []
    assert [beat.process for beat in monitor.stalled(deadline_s=20)] == ["learner"]
    clock.now += 20
    assert monitor.stalled() == [Heartbeat("learner", "train", 70)]
    monitor.write_heartbeat()
    monitor.close()
    record = json.loads((tmp_path / "heartbeat.jsonl").read_text())
    assert record["processes"]["learner"] == {
        "phase": "train",
        "age_s": 70,
        "pid": None,
        "is_stalled": True,
        "state": "",
        "cpu_percent": None,
        "rss_mb": None,
        "uss_mb": None,
    }
    assert record["processes"]["env_actor_0"]["is_stalled"] is False


@pytest.mark.parametrize("field", ["gpu_interval_s", "uss_interval_s", "stall_after_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_config_names_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"monitor\.{field} must be above 0"):
        MonitorConfig(**{field: value})


def test_actor_shell_samples_and_writes(tmp_path: Path) -> None:
    actor = MonitorActor(tmp_path, MonitorConfig(stall_after_s=10))
    actor.watch("driver", os.getpid())
    figures = actor.sample([Heartbeat("learner", "train", 30.0)])
    assert figures["rss_mb_max/driver"] > 10
    assert [beat.process for beat in actor.stalled()] == ["learner"]
    assert actor.ping() == os.getpid()
    actor.watch("learner", os.getpid())
    assert actor.sample()["rss_mb_max/learner"] > 10
    record = json.loads((tmp_path / "heartbeat.jsonl").read_text().splitlines()[0])
    assert set(record["processes"]) == {"driver", "learner"}
