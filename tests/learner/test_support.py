"""h-transform and two-hot targets against hand-computed values."""

from __future__ import annotations

import pytest
import torch

from learner.world_model.support import Support, inverse_transform, transform


def test_transform_by_hand():
    x = torch.tensor([0.0, 3.0, -3.0, 99.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 1.003, -1.003, 9.099], dtype=torch.float64)
    torch.testing.assert_close(transform(x), expected)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 2e-6)])
def test_inverse_undoes_the_transform(dtype, bound):
    x = torch.linspace(-400.0, 400.0, 1601, dtype=dtype)
    error = (inverse_transform(transform(x)) - x).abs() / x.abs().clamp(min=1.0)
    assert error.max().item() <= bound


def test_two_hot_by_hand():
    support = Support(5, 2.0).double()  # bins at -2 -1 0 1 2
    x = inverse_transform(torch.tensor([0.0, 0.25, -1.5, 9.0], dtype=torch.float64))
    expected = torch.tensor(
        [[0, 0, 1, 0, 0], [0, 0, 0.75, 0.25, 0], [0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(support.two_hot(x), expected)


def test_two_hot_round_trip():
    support = Support(101, 20.0).double()
    x = torch.linspace(-400.0, 400.0, 977, dtype=torch.float64)
    target = support.two_hot(x)
    torch.testing.assert_close(target.sum(-1), torch.ones_like(x))
    torch.testing.assert_close(support.decode(target.clamp(min=1e-300).log()), x)
