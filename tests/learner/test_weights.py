"""Published weights: versions only grow, and what does not fit is refused by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from learner.weight_server_actor import LocalWeightLink, WeightServerActor
from learner.weights import NO_VERSION, Weights, WeightStore, load_weights, snapshot_weights


def weights(version: int) -> Weights:
    return Weights(version, {"weight": np.full((1, 2), version, np.float32)})


@pytest.fixture(params=["store", "server"])
def store(request):
    return WeightStore() if request.param == "store" else LocalWeightLink(WeightServerActor())


def test_empty_store_has_nothing_to_pull(store):
    assert store.published_version() == NO_VERSION
    assert store.pull_if_newer(NO_VERSION) is None


def test_pull_returns_the_newest_or_nothing(store):
    store.push(weights(0))
    store.push(weights(5))
    assert store.pull_if_newer(NO_VERSION).version == 5
    assert store.pull_if_newer(4).version == 5
    assert store.pull_if_newer(5) is None
    assert store.pull_if_newer(9) is None


@pytest.mark.parametrize("version", [0, 4, 5])
def test_older_or_equal_versions_are_refused(store, version):
    store.push(weights(5))
    with pytest.raises(ValueError, match=f"version {version} is not newer .* 5"):
        store.push(weights(version))
    assert store.published_version() == 5


def test_two_versions_are_kept():
    store = WeightStore()
    for version in range(4):
        store.push(weights(version))
    assert [kept.version for kept in store._kept] == [2, 3]


def test_snapshot_is_a_copy_and_load_restores_it():
    model = nn.Linear(3, 2)
    published = snapshot_weights(model, 7)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(1.0)
    for array in published.tensors.values():
        array.flags.writeable = False  # as it is behind shared memory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(model, published)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name])


def test_load_names_what_does_not_fit():
    with pytest.raises(ValueError, match="disagree on \\['bias'\\]"):
        load_weights(nn.Linear(2, 1), weights(1))
    with pytest.raises(ValueError, match=r"weight has shape \(1, 2\), the model wants \(1, 3\)"):
        load_weights(nn.Linear(3, 1, bias=False), weights(1))
