"""Observations to latents: a strided conv net for images, an MLP for vectors.

Texts have encoders of their own (`text_encoder.py`).

Latents are SimNorm-normalised: groups of 8 entries, each a softmax, so that they stay bounded
however far the model is unrolled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.world_model.config import SIMNORM_GROUP, WorldModelConfig

SLOWEST_ADAPTATION = 1e-3  # share of a new batch in the input statistics, once they have settled
SMALLEST_VARIANCE = 1e-6  # an entry that never changes is not blown up
_SMALLEST_GRID = 6  # stop halving here: 64 -> 4, 84 -> 6, 96 -> 6 pixels a side


class SimNorm(nn.Module):
    """Softmax within groups of 8 latent entries."""

    def forward(self, x: Tensor) -> Tensor:
        # Entries of a group lie E / 8 apart: a softmax over the last, short axis is 3x slower.
        groups = x.unflatten(-1, (SIMNORM_GROUP, -1))
        return torch.softmax(groups, dim=-2).flatten(-2)


def symlog(x: Tensor) -> Tensor:
    """Squeezes unbounded inputs; close to the identity around 0."""
    return torch.sign(x) * torch.log1p(x.abs())


class VectorEncoder(nn.Module):
    """[N, D] float32 -> [N, E]; entries are standardised by running statistics of training data.

    The statistics are buffers: they are published, saved and loaded with the weights.
    """

    def __init__(self, config: WorldModelConfig, n_inputs: int) -> None:
        super().__init__()
        hidden = config.mlp_hidden
        self.register_buffer("mean", torch.zeros(n_inputs))
        self.register_buffer("mean_square", torch.ones(n_inputs))
        self.register_buffer("n_adapted", torch.zeros(()))
        self.layers = nn.Sequential(
            nn.Linear(n_inputs, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.embed_dim),
            SimNorm(),
        )

    @torch.no_grad()
    def adapt(self, obs: Tensor) -> None:
        """Move the statistics towards those of `obs` [..., D]; plain averages at first."""
        rows = obs.flatten(0, -2).to(self.mean.dtype)
        share = torch.clamp(1.0 / (self.n_adapted + 1.0), min=SLOWEST_ADAPTATION)
        self.mean.lerp_(rows.mean(0), share)
        self.mean_square.lerp_(rows.square().mean(0), share)
        self.n_adapted += 1.0

    def forward(self, obs: Tensor) -> Tensor:
        variance = (self.mean_square - self.mean.square()).clamp(min=SMALLEST_VARIANCE)
        standard = (obs.to(self.mean.dtype) - self.mean) * variance.rsqrt()
        return self.layers(symlog(standard).to(self.layers[0].weight.dtype))


class ImageEncoder(nn.Module):
    """[N, C, H, W] uint8 -> [N, E]; convolutions of stride 2 until the grid is small."""

    def __init__(self, config: WorldModelConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        n_channels, height, width = shape
        wide = config.encoder_channels
        stages: list[nn.Module] = []
        while max(height, width) > _SMALLEST_GRID:
            n_out = max(wide // 2, 1) if not stages else wide
            stages += [
                nn.Conv2d(n_channels, n_out, kernel_size=4, stride=2, padding=1),
                nn.GroupNorm(1, n_out),
                nn.SiLU(),
            ]
            n_channels, height, width = n_out, height // 2, width // 2
        self.stages = nn.Sequential(*stages)
        self.out = nn.Linear(n_channels * height * width, config.embed_dim)
        self.norm = SimNorm()

    def forward(self, obs: Tensor) -> Tensor:
        pixels = obs.to(self.out.weight.dtype) / 255.0 - 0.5
        return self.norm(self.out(self.stages(pixels).flatten(1)))
