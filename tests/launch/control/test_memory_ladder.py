"""The ladder itself: where it ends, what it keeps, and what a resume reads of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.config import Config, parse, to_dict
from launch.control.memory_ladder import next_rung, with_saved_rung
from launch.control.runtime import tells_of_memory


def sized(
    batch_size: int = 128, accumulate: int = 1, envs: int = 2, *, auto: bool = True
) -> Config:
    config = Config()
    return replace(
        config,
        learner=replace(config.learner, batch_size=batch_size, accumulate=accumulate),
        acting=replace(config.acting, envs_per_actor=envs),
        control=replace(config.control, auto_memory=auto),
    )


@given(batch_size=st.integers(1, 300), accumulate=st.integers(1, 300), envs=st.integers(1, 40))
def test_every_step_is_smaller_and_the_ladder_ends(batch_size, accumulate, envs):
    config = sized(batch_size, accumulate, envs)
    while (rung := next_rung(config, "learner")) is not None:
        old, new = config.learner, rung.config.learner
        if new.batch_size == old.batch_size:
            assert old.accumulate < new.accumulate <= new.batch_size
        else:
            assert old.accumulate >= old.batch_size > new.batch_size == new.accumulate
        assert replace(rung.config, learner=old) == config  # nothing else changed
        config = rung.config
    assert config.learner.batch_size == 1
    while (rung := next_rung(config, "env_actor")) is not None:
        assert 1 <= rung.config.acting.envs_per_actor < config.acting.envs_per_actor
        config = rung.config
    assert config.acting.envs_per_actor == 1


def test_a_resume_takes_over_what_is_smaller_and_nothing_else(tmp_path):
    file = tmp_path / "config.yaml"
    asked = sized(128, 1, 8)
    assert with_saved_rung(asked, file) == asked
    saved = replace(sized(64, 16, 4), seed=7)
    file.write_text(yaml.safe_dump(to_dict(saved)))
    assert with_saved_rung(asked, file) == sized(64, 16, 4)
    assert with_saved_rung(sized(32, 32, 2), file) == sized(32, 32, 2)
    assert with_saved_rung(sized(128, 1, 8, auto=False), file) == sized(128, 1, 8, auto=False)
    file.write_text(yaml.safe_dump(to_dict(sized(64, 16, 4, auto=False))))
    assert with_saved_rung(asked, file) == asked


@pytest.mark.parametrize("text", ["", "[1]", "control: {auto_memory: true}", "a: [", "control: 3"])
def test_settings_that_cannot_be_read_change_nothing(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert with_saved_rung(sized(), tmp_path / "config.yaml") == sized()


def test_the_short_name_is_the_long_one():
    assert parse(["--auto-memory", "true"])[1] == parse(["--control.auto-memory", "true"])[1]
    assert parse(["--auto-memory", "true"])[1].control.auto_memory
    assert parse(["--auto-memory"])[1].control.auto_memory
    assert parse(["--auto-memory", "--seed", "3"])[1].control.auto_memory
    assert not parse([])[1].control.auto_memory


@pytest.mark.parametrize(
    ("cause", "wanted"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", True),
        ("RuntimeError('... DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("MemoryError()", True),
        ("torch.AcceleratorError: CUDA error: out of memory", True),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", True),
        ("torch.AcceleratorError: CUDA error: device-side assert triggered", False),
        ("worker was killed: the node was running low on memory", True),
        ("ValueError('memory')", False),
        ("RuntimeError('shape mismatch')", False),
    ],
)
def test_what_counts_as_a_lack_of_memory(cause, wanted):
    assert tells_of_memory(cause) is wanted
