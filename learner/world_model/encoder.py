"""Observations to latents: a strided conv net for images, an MLP for vectors.

Latents are SimNorm-normalised: groups of 8 entries, each a softmax, so that they stay bounded
however far the model is unrolled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.world_model.config import SIMNORM_GROUP, WorldModelConfig
from replay_service.segment import GameSpec

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
    """[N, D] float32 -> [N, E]."""

    def __init__(self, config: WorldModelConfig, n_inputs: int) -> None:
        super().__init__()
        hidden = config.mlp_hidden
        self.layers = nn.Sequential(
            nn.Linear(n_inputs, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, config.embed_dim),
            SimNorm(),
        )

    def forward(self, obs: Tensor) -> Tensor:
        return self.layers(symlog(obs.to(self.layers[0].weight.dtype)))


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


def make_encoder(config: WorldModelConfig, spec: GameSpec) -> VectorEncoder | ImageEncoder:
    """The encoder that fits `spec`."""
    if spec.is_image:
        return ImageEncoder(config, spec.stacked_shape)
    return VectorEncoder(config, spec.stacked_shape[0])
