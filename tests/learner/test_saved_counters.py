"""learner.json with any content: counters to go on from, or refused by the key that is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from learner.checkpoint import COUNTERS_FILE, LearnerCounters, read_counters, read_tensors

MANY = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SOUND = asdict(LearnerCounters(rng_state=np.random.default_rng(0).bit_generator.state))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NODES = st.recursive(
    LEAVES, lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=5), node)
)


@settings(MANY, max_examples=800)
@given(name=st.sampled_from([*SOUND, "extra"]), value=NODES)
@example("updates", 2**31)
@example("watched", {"dormant_share": float("nan")})
def test_any_value_of_any_key(tmp_path, name, value):
    path = tmp_path / COUNTERS_FILE
    path.write_text(json.dumps(SOUND | {name: value}))
    try:
        counters = read_counters(path)
    except ValueError as error:
        assert str(path) in str(error) and name in str(error)
        return
    assert counters.updates >= 0 and counters.skipped >= 0
    np.random.default_rng().bit_generator.state = counters.rng_state


@MANY
@given(content=st.binary(max_size=100) | NODES.map(lambda node: json.dumps(node).encode()))
@example(b"[" * 100_000)
@example(b'{"updates": ' + b"9" * 5_000 + b"}")
def test_any_file(tmp_path, content):
    path = tmp_path / COUNTERS_FILE
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"learner\.json"):
        read_counters(path)


@MANY
@given(
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=5),
    length=st.none() | st.integers(0, 400),
)
@example([(7, 255)], None)  # a header of 2^63 bytes
def test_any_file_of_tensors(tmp_path, flips, length):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4, 4), "b": torch.zeros(3)}, path)
    content = bytearray(path.read_bytes()[:length])
    for position, mask in flips:
        if content:
            content[position % len(content)] ^= mask
    path.write_bytes(content)
    try:
        tensors = read_tensors(path, {"a": (4, 4), "b": (3,)})
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
