"""GPUs that go away, and learning that falls back to the CPU."""

from __future__ import annotations

import pytest

from launch.control.gpu_alarm import GpuAlarm, why_fallen_back


def test_a_machine_without_gpus_gives_no_alarm() -> None:
    alarm = GpuAlarm()
    for sample in ({}, {"gpu_count": None, "gpu_missing_reason": "no driver"}, {"gpu_count": 0}):
        assert alarm.look(sample) is None
    assert alarm.figures() == {"gpus_missing": 0.0}


def test_each_loss_and_return_is_told_once() -> None:
    alarm = GpuAlarm()
    assert alarm.look({"gpu_count": 2}) is None
    lost = {"gpu_count": 1, "gpu_missing_reason": "NVML, GPU 1: GPU is lost"}
    assert alarm.look(lost) == (
        "gpu_lost",
        {"gpus": 1, "missing": 1, "cause": "NVML, GPU 1: GPU is lost"},
    )
    assert alarm.look(lost) is None
    assert alarm.figures() == {"gpus_missing": 1.0}
    kind, fields = alarm.look({"gpu_count": None, "gpu_missing_reason": "driver gone"})
    assert (kind, fields["missing"], fields["cause"]) == ("gpu_lost", 2, "driver gone")
    assert alarm.look({"gpu_count": 2, "gpu_missing_reason": ""}) == (
        "gpu_back",
        {"gpus": 2, "missing": 0, "cause": ""},
    )


@pytest.mark.parametrize("wanted", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("n_gpus", [None, 0, 2])
@pytest.mark.parametrize("was_on_gpu", [False, True])
def test_only_a_cpu_nobody_asked_for_is_a_fall_back(
    wanted: str, device: str, n_gpus: int | None, was_on_gpu: bool
) -> None:
    why = why_fallen_back(wanted, device, n_gpus=n_gpus, was_on_gpu=was_on_gpu)
    is_surprise = wanted == "auto" and device == "cpu" and bool(n_gpus or was_on_gpu)
    assert (why is not None) == is_surprise
    if is_surprise:
        assert ("before" in why) == was_on_gpu
