"""Scalars as distributions over bins: the MuZero h-transform and two-hot targets.

h squeezes returns so that one set of evenly spaced bins serves small and large ones; a two-hot
target puts a scalar's mass on its two neighbouring bins, so that the expectation gives it back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SLOPE = 0.001  # linear term that keeps h invertible with a bounded slope (MuZero, appendix F)


def transform(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x."""
    return torch.sign(x) * (torch.sqrt(x.abs() + 1.0) - 1.0) + _SLOPE * x


def inverse_transform(y: Tensor) -> Tensor:
    """h^-1(y); exact up to rounding."""
    size = y.abs()
    # Solving h(x) = y for r = sqrt(x + 1): slope r^2 + r - (1 + slope + y) = 0. Written as a
    # quotient, since the textbook root cancels: float32 would keep three digits of it.
    c = 1.0 + _SLOPE + size
    r = 2.0 * c / (1.0 + torch.sqrt(1.0 + 4.0 * _SLOPE * c))
    return torch.sign(y) * (r - 1.0) * (r + 1.0)


class Support(nn.Module):
    """Evenly spaced bins over [-limit, limit] in transformed space."""

    offsets: Tensor  # whole numbers, so that no dtype rounds the bins

    def __init__(self, n_bins: int, limit: float) -> None:
        super().__init__()
        self.n_bins = n_bins
        self.limit = limit
        self.spacing = 2.0 * limit / (n_bins - 1)
        offsets = torch.arange(n_bins, dtype=torch.get_default_dtype()) - n_bins // 2
        self.register_buffer("offsets", offsets, persistent=False)

    def decode(self, logits: Tensor) -> Tensor:
        """Scalars [...] in units of return from logits [..., bins]."""
        shares = torch.softmax(logits.to(self.offsets.dtype), dim=-1)
        return inverse_transform((shares @ self.offsets) * self.spacing)

    def two_hot(self, x: Tensor) -> Tensor:
        """Target shares [..., bins] of scalars [...]; values beyond the support are clamped."""
        place = (transform(x).clamp(-self.limit, self.limit) + self.limit) / self.spacing
        lower = place.floor().clamp(max=self.n_bins - 2)
        upper_share = (place - lower).unsqueeze(-1)
        # Clamped again: NaN becomes some index, and its NaN shares make the loss say so.
        index = lower.long().clamp(0, self.n_bins - 2).unsqueeze(-1)
        target = torch.zeros(*x.shape, self.n_bins, dtype=place.dtype, device=x.device)
        target.scatter_(-1, index, 1.0 - upper_share)
        return target.scatter_(-1, index + 1, upper_share)
