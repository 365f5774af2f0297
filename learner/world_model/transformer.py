"""Pre-norm transformer with rotary positions and a mask banded by environment steps.

Tokens run o_0 a_0 o_1 a_1 ...; step(o_t) = t and step(a_t) = t + 1, the step it leads to. A token
sees keys at or before it whose step is among the last W, its own included. The same rule holds in
training and search, and keys are rotated when written, so cached keys are exact as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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


class Reach(NamedTuple):
    """What one token a row reads in one layer, as views of a TokenContext.

    keys, values: [N, heads, P, D], the token's own place last
    own_key, own_value: [N, heads, D], that place
    """

    keys: Tensor
    values: Tensor
    own_key: Tensor
    own_value: Tensor


class TokenContext:
    """What the two tokens of one step read in N rows: C earlier steps, then their own step.

    Buffers that stay where they are, with all views made ahead: for few rows, an operation costs
    more to start than to run.
    """

    def __init__(self, config: WorldModelConfig, n_rows: int, n_steps: int, like: Tensor) -> None:
        """For windows of `n_steps` = C earlier steps; device and dtype as of `like`."""
        head_dim = config.head_dim
        self.action_place = 2 * n_steps  # the step's action token lies here, its observation next
        n_places = self.action_place + 2
        self._kv = like.new_zeros(config.n_layers, 2, n_rows, config.n_heads, n_places, head_dim)
        self._earlier = self._kv[..., :-2, :].unflatten(4, (n_steps, 2))
        self._own = self._kv[..., -2:, :].permute(2, 0, 1, 4, 3, 5)
        self._mask = like.new_zeros(n_rows, 1, n_places)  # 0 or minus infinity
        self._mask_earlier = self._mask[:, 0, :-2]
        self._frequency = rotary_frequency(head_dim, like.device)
        # The query's share of the rotation carries the 1 / sqrt(D) of attention as well.
        scale = torch.tensor([head_dim**-0.5, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1)
        self._scale, self._signed = scale.to(like.device), (scale * sign).to(like.device)
        cos_sin = like.new_zeros(2, 2, n_rows, 2, 1, head_dim)  # cos or sin, token, row, q or k
        self._cos, self._sin = cos_sin.unflatten(-1, (2, -1))
        self.turns = list(cos_sin.unbind(1))
        ends = (n_places - 1, n_places)
        self.masks = [self._mask[..., :end] for end in ends]
        self.reach = [[_reach(layer, end) for layer in self._kv] for end in ends]

    def read(self, kv: Tensor, valid: Tensor, step: Tensor) -> None:
        """Take in pages [N, C, L, 2(k, v), 2(tokens), heads, D] of earlier steps in any order.

        Keys carry their position. valid [N, C, 2] bool: entries that are not may hold any finite
        number. step [N] int64: the tokens' own.
        """
        self._earlier.copy_(kv.permute(2, 3, 0, 5, 1, 4, 6))
        self._mask.zero_()
        self._mask_earlier.masked_fill_(~valid.flatten(1), -torch.inf)
        position = torch.stack((action_position(step), observation_position(step)))
        angle = position[:, :, None, None, None, None] * self._frequency
        self._cos.copy_(torch.cos(angle) * self._scale)
        self._sin.copy_(torch.sin(angle) * self._signed)

    def own(self) -> Tensor:
        """Keys and values of both tokens, as a page holds them: [N, L, 2, 2 (tokens), heads, D]."""
        return self._own

    def replace_action(self, action_kv: Tensor, has_action: Tensor) -> None:
        """Put `action_kv` [N, L, 2, heads, D] in the action's place; hide it where there is none.

        Hidden keys are zero, not only masked: a masked NaN would still reach a weighted sum.
        """
        self._own[:, :, :, 0] = torch.where(has_action[:, None, None, None, None], action_kv, 0.0)
        self._mask[:, 0, self.action_place].masked_fill_(~has_action, -torch.inf)


def _reach(layer: Tensor, end: int) -> Reach:
    keys, values = layer[0, :, :, :end], layer[1, :, :, :end]
    return Reach(keys, values, keys[:, :, -1], values[:, :, -1])


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
        return x + self._mlp(x), (keys, values)

    def step(self, x: Tensor, turn: Tensor, reach: Reach, mask: Tensor) -> Tensor:
        """One token a row, x [N, E]; its keys and values go into its own place of `reach`.

        turn [2 (cos, sin), N, 2 (q, k), 1, D], attention's scale included; mask [N, 1, P] additive
        """
        qkv = self.qkv(self.norm_attention(x)).view(len(x), 3, self.n_heads, -1)
        query, key = rotate(qkv[:, :2], turn).unbind(1)
        reach.own_key.copy_(key)
        reach.own_value.copy_(qkv[:, 2])
        score = torch.matmul(reach.keys, query.unsqueeze(-1)).squeeze(-1)
        share = torch.softmax(score + mask, dim=-1)
        mixed = torch.matmul(share.unsqueeze(-2), reach.values)
        x = x + self.attention_out(mixed.view(len(x), -1))
        return x + self._mlp(x)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.mlp_out(functional.silu(self.mlp_in(self.norm_mlp(x))))


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

    def step(self, x: Tensor, context: TokenContext, token: int) -> Tensor:
        """Features [N, E] of one token a row, x [N, E]: 0 is the action, 1 the observation."""
        turn, mask = context.turns[token], context.masks[token]
        for block, reach in zip(self.blocks, context.reach[token], strict=True):
            x = block.step(x, turn, reach, mask)
        return self.norm_out(x)
