"""Pre-norm transformer with rotary positions and a mask banded by environment steps.

Tokens run o_0 a_0 o_1 a_1 ...; step(o_t) = t and step(a_t) = t + 1, the step it leads to. A token
sees keys at or before it whose step is among the last W, its own included. The same rule holds in
training and search, and keys are rotated when written, so cached keys are exact as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from learner.world_model.config import WorldModelConfig

_ROPE_BASE = 10_000.0

KeyValues = tuple[Tensor, Tensor]  # keys and values of one layer, each [B, heads, T, D]


def observation_position(step: Tensor) -> Tensor:
    """Rotary position of o_t, from t."""
    return 2 * step


def action_position(step: Tensor) -> Tensor:
    """Rotary position of an action, from the step it leads to: one before that observation."""
    return 2 * step - 1


def banded_mask(n_tokens: int, window_steps: int, device: torch.device) -> Tensor:
    """[n_tokens, n_tokens] bool, True where the row (query) may read the column (key)."""
    index = torch.arange(n_tokens, device=device)
    step = (index + 1) // 2
    causal = index[None, :] <= index[:, None]
    return causal & (step[None, :] > step[:, None] - window_steps)


def first_visible_token(token: int, window_steps: int) -> int:
    """Index of the oldest token that `token` may read; what the mask's row says, as a number."""
    oldest_step = (token + 1) // 2 - window_steps + 1
    return max(0, 2 * oldest_step - 1)


def rotary_frequency(head_dim: int, device: torch.device) -> Tensor:
    """Angle per position of each pair, [D / 2] float64."""
    even = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
    return _ROPE_BASE ** (-even / head_dim)


def rotation(position: Tensor, head_dim: int, dtype: torch.dtype) -> Tensor:
    """[2, B, 1, T, D]: cos and signed sin for positions [B, T] int64.

    Angles are float64: at step 10,000 a float32 angle is off by 1e-3.
    """
    frequency = rotary_frequency(head_dim, position.device)
    angle = position.to(torch.float64)[:, None, :, None] * frequency
    cos, sin = torch.cos(angle), torch.sin(angle)
    cos_sin = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
    return cos_sin.to(dtype)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of [..., B, heads, T, D]."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos_sin[0], swapped, cos_sin[1])


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.n_heads = config.n_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, config.mlp_ratio * width)
        self.mlp_out = nn.Linear(config.mlp_ratio * width, width)

    def forward(
        self, x: Tensor, cos_sin: Tensor, past: KeyValues | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValues]:
        """x [B, T, E]; mask additive over the P + T keys; returns x and past joined with own."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.n_heads, -1))
        qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, B, heads, T, D]
        query, keys = rotate(qkv[:2], cos_sin.to(qkv.dtype))
        values = qkv[2]
        if past is not None:
            keys, values = torch.cat((past[0], keys), -2), torch.cat((past[1], values), -2)
        mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(-2))
        return x + self.mlp_out(functional.silu(self.mlp_in(self.norm_mlp(x)))), (keys, values)


class Transformer(nn.Module):
    """L blocks and a final LayerNorm; knows nothing of what a token means."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm_out = nn.LayerNorm(config.embed_dim)
        for block in self.blocks:
            # Residual branches start small: their sum has the variance of one (GPT-2).
            for linear in (block.attention_out, block.mlp_out):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * config.n_layers))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        past: Sequence[KeyValues] | None = None,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValues]]:
        """x [B, T, E], position [B or 1, T]; past per layer, P tokens; allowed bool over P + T.

        Returns features [B, T, E] and, per layer, the keys and values of all P + T tokens.
        """
        cos_sin = rotation(position, self.config.head_dim, x.dtype)
        mask = None
        if allowed is not None:
            mask = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device)
            mask.masked_fill_(~allowed, -torch.inf)
        joined = []
        for layer, block in enumerate(self.blocks):
            x, key_values = block(x, cos_sin, None if past is None else past[layer], mask)
            joined.append(key_values)
        return self.norm_out(x), joined
