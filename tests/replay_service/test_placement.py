"""Where replay keeps its memory: the stated rule, on machines that are only pretended."""

import numpy as np
import pytest
import torch

from replay_service import Replay, ReplayConfig, TargetConfig, choose_device
from replay_service.placement import reserve, upload


@pytest.fixture
def gpu_of(monkeypatch):
    """Pretend a GPU with so many MB free, or none."""

    def pretend(free_mb: float | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: free_mb is not None)
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda: (int((free_mb or 0) * 1e6), 80_000_000_000)
        )

    return pretend


@pytest.mark.parametrize(
    ("free_mb", "config", "device", "reason"),
    [
        (None, {}, "cpu", "auto: this process sees no GPU"),
        (4_000, {}, "cuda", "auto: capacity_mb=2000 fits into half of 4000 MB free"),
        (3_999, {}, "cpu", "auto: capacity_mb=2000 exceeds half of the 3999 MB"),
        (4_000, {"engine": "numba"}, "cpu", "auto: replay.engine=numba runs on the CPU"),
        (4_000, {"device": "cpu"}, "cpu", "replay.device=cpu"),
        (2_100, {"device": "cuda"}, "cuda", "replay.device=cuda, 2100 MB free"),
    ],
)
def test_the_rule_and_its_reason(gpu_of, free_mb, config, device, reason):
    gpu_of(free_mb)
    chosen, text = choose_device(ReplayConfig(**config))
    assert chosen.type == device and text.startswith(reason)


def test_a_gpu_that_was_asked_for_must_be_there_and_large_enough(gpu_of):
    gpu_of(None)
    with pytest.raises(ValueError, match=r"sees no GPU; .* set replay\.device to auto or cpu"):
        choose_device(ReplayConfig(device="cuda"))
    gpu_of(1_500)
    with pytest.raises(ValueError, match=r"capacity_mb=2000 exceeds the 1500 MB .* lower"):
        choose_device(ReplayConfig(device="cuda"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, got 'gpu'"),
        ({"engine": "c"}, "engine must be one of auto, numba, torch, got 'c'"),
        ({"scalars": "int8"}, "scalars must be one of float16, float32, got 'int8'"),
        ({"device": "cuda", "engine": "numba"}, "engine is numba, .* but device is cuda; set"),
    ],
)
def test_settings_name_what_is_allowed(config, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(**config)


def test_pages_that_cannot_be_pinned_are_used_as_they_are(gpu_of):
    """There is no GPU behind the pretended one, so pinning fails."""
    gpu_of(1_000)
    tensor = reserve((3, 2), "float16", torch.device("cpu"))
    assert tensor.dtype == torch.float16 and not tensor.any()


def test_read_only_arrays_are_copied_and_others_shared(recwarn):
    array = np.arange(3)
    shared = upload(array, torch.device("cpu"))
    array[0] = 7
    assert shared[0] == 7
    array.flags.writeable = False
    copied = upload(array, torch.device("cpu"))
    copied[0] = 1
    assert array[0] == 7 and not recwarn.list


def test_a_replay_tells_where_it_lies(vector_spec):
    replay = Replay(ReplayConfig(capacity_mb=1), TargetConfig(), vector_spec, seed=0)
    assert (replay.device, replay.device_reason) == choose_device(replay.config)
