"""A saved learner in one with another model: what fits is taken over, the rest is listed."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from learner.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    TARGET_FILE,
    LearnerCounters,
    load_learner,
    save_learner,
)
from learner.config import LearnerConfig
from learner.learner import make_optimizer
from learner.partial_restore import load_matching
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec

SPEC = GameSpec((4,), "float32", n_actions=2)
SMALL = WorldModelConfig(embed_dim=16, n_heads=2, n_layers=1, mlp_hidden=16, window_steps=2)


def parts(config: WorldModelConfig, seed: int, *, steps: int = 0):
    """Model, target, average and optimizer, after some steps that move every parameter."""
    torch.manual_seed(seed)
    model = WorldModel(config, SPEC)
    target, average = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = make_optimizer(model, LearnerConfig(), torch.device("cpu"))
    for _ in range(steps):
        sum((p * torch.randn_like(p)).sum() for p in model.parameters()).backward()
        optimizer.step()
    return model, target, average, optimizer


def saved(folder, config=SMALL):
    old = parts(config, seed=1, steps=2)
    save_learner(
        folder,
        *old,
        LearnerCounters(updates=2, rng_state=np.random.default_rng(0).bit_generator.state),
    )
    return old


def moments(model, optimizer):
    return {n: dict(optimizer.state.get(p, {})) for n, p in model.named_parameters()}


def equal_states(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_where_everything_fits_it_is_a_plain_load(tmp_path):
    saved(tmp_path)
    plain, relaxed = parts(SMALL, seed=2), parts(SMALL, seed=3, steps=1)
    assert load_learner(tmp_path, *plain) == load_matching(tmp_path, *relaxed)[0]
    for one, other in zip(plain[:3], relaxed[:3], strict=True):
        assert equal_states(one.state_dict(), other.state_dict())
    before, after = moments(plain[0], plain[3]), moments(relaxed[0], relaxed[3])
    assert all(equal_states(before[name], after[name]) for name in before)
    matches = load_matching(tmp_path, *relaxed)[1]
    assert all(match.is_complete for match in matches.values())
    assert matches[OPTIMIZER_FILE].n_loaded == 3 * len(before)


def test_another_layer_is_missing_one_way_and_unexpected_the_other(tmp_path):
    deep = dataclasses.replace(SMALL, n_layers=2)
    saved(tmp_path / "small")
    saved(tmp_path / "deep", deep)
    new = parts(deep, seed=5)
    fresh = copy.deepcopy(new[0].state_dict())
    match = load_matching(tmp_path / "small", *new)[1][MODEL_FILE]
    assert match.missing and not match.unexpected and not match.other_shape
    state, source = new[0].state_dict(), load_file(tmp_path / "small" / MODEL_FILE)
    assert match.n_loaded == len(source)
    assert all(torch.equal(state[name], source[name]) for name in source)
    assert all(torch.equal(state[name], fresh[name]) for name in match.missing)
    back = load_matching(tmp_path / "deep", *parts(SMALL, seed=5))[1]
    assert back[MODEL_FILE].unexpected == match.missing and not back[MODEL_FILE].missing
    assert back[OPTIMIZER_FILE].unexpected


def test_a_parameter_that_was_not_taken_over_has_no_moments(tmp_path):
    saved(tmp_path)
    wide = dataclasses.replace(SMALL, mlp_hidden=24)
    model, target, average, optimizer = parts(wide, seed=5, steps=1)
    _, matches = load_matching(tmp_path, model, target, average, optimizer)
    other = matches[MODEL_FILE].other_shape
    assert other and all(old != new for old, new in other.values())
    for name, state in moments(model, optimizer).items():
        assert bool(state) == (name not in other)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()  # and training goes on with both kinds


def test_moments_of_a_parameter_that_the_file_lacks_are_left_out(tmp_path):
    model = saved(tmp_path)[0]
    lost = next(name for name, _ in model.named_parameters())
    tensors = load_file(tmp_path / MODEL_FILE)
    del tensors[lost]
    save_file(tensors, tmp_path / MODEL_FILE)
    new = parts(SMALL, seed=5)
    assert load_matching(tmp_path, *new)[1][MODEL_FILE].missing == (lost,)
    state = moments(new[0], new[3])
    assert not state.pop(lost) and all(state.values())


def test_nothing_that_fits_is_refused(tmp_path):
    saved(tmp_path)
    save_file({"elsewhere": torch.zeros(3)}, tmp_path / MODEL_FILE)
    with pytest.raises(ValueError, match="no tensor fits"):
        load_matching(tmp_path, *parts(SMALL, seed=5))


@settings(max_examples=40)
@given(data=st.data())
def test_every_key_is_accounted_for(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    saved(folder)
    tensors = load_file(folder / TARGET_FILE)
    for name in data.draw(st.sets(st.sampled_from(sorted(tensors)), max_size=4)):
        change = data.draw(st.sampled_from(["remove", "rename", "reshape"]))
        tensor = tensors.pop(name)
        if change == "rename":
            tensors[f"{name}.old"] = tensor
        elif change == "reshape":
            tensors[name] = torch.zeros(*tensor.shape, 2)
    save_file(tensors, folder / TARGET_FILE)
    new = parts(SMALL, seed=5)
    match = load_matching(folder, *new)[1][TARGET_FILE]
    own, file = new[1].state_dict().keys(), tensors.keys()
    assert set(match.missing) == own - file and set(match.unexpected) == file - own
    assert match.n_loaded + len(match.other_shape) == len(own & file)
