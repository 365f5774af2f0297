"""Weights read from a checkpoint are the ones that the learner would have published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.checkpoint import AVERAGE_FILE, COUNTERS_FILE, checkpoint_weights
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.weights import load_weights
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec
from replay_service.targets import TargetConfig

SPEC = GameSpec((4,), "float32", n_actions=2)
MODEL = WorldModelConfig(embed_dim=16, n_layers=1)


@pytest.fixture
def learner():
    learner = Learner(LearnerConfig(), MODEL, TargetConfig(), SPEC, "cpu", seed=3)
    with torch.no_grad():  # neither the target network nor the newest weights may be read
        for parameter in learner.average_model.parameters():
            parameter.add_(0.25)
    learner.advance_version(published=41)
    return learner


def test_saved_weights_equal_published_ones(learner, tmp_path):
    learner.save(tmp_path)
    published, read = learner.weights(), checkpoint_weights(tmp_path)
    assert read.version == published.version == 42
    assert read.tensors.keys() == published.tensors.keys()
    for name, array in published.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], array)


def test_they_load_into_a_model_of_the_same_settings(learner, tmp_path):
    learner.save(tmp_path)
    model = WorldModel(MODEL, SPEC)
    load_weights(model, checkpoint_weights(tmp_path))
    for name, value in learner.average_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("missing", [AVERAGE_FILE, COUNTERS_FILE])
def test_a_missing_file_is_named(learner, tmp_path, missing):
    learner.save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        checkpoint_weights(tmp_path)
