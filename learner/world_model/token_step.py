"""The world model as search runs it: one token a row, over keys and values of earlier steps.

The same arithmetic as `WorldModel.forward` (tests hold them together), written for few rows, where
an operation costs more to start than to run: buffers that stay where they are, views and parameters
looked up once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cache.pages import ACTION_SLOT, OBSERVATION_SLOT, Pages
from cache.windows import Windows
from learner.world_model.config import WorldModelConfig
from learner.world_model.transformer import (
    Block,
    action_position,
    observation_position,
    rotary_frequency,
    rotate,
)


class Affine(NamedTuple):
    """A linear layer: x @ matrix + bias."""

    matrix: Tensor  # [in, out], a view of the layer's weight
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> Affine:
        return cls(layer.weight.t(), layer.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.matrix)


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, layer: nn.LayerNorm) -> Norm:
        return cls(layer.weight, layer.bias, layer.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Head(NamedTuple):
    """Two linear layers with a SiLU between them."""

    inner: Affine
    outer: Affine

    @classmethod
    def of(cls, head: nn.Sequential) -> Head:
        return cls(Affine.of(head[0]), Affine.of(head[2]))

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(functional.silu(self.inner(x)))


class TokenBlock(NamedTuple):
    """A transformer block for one token a row."""

    n_heads: int
    norm_attention: Norm
    qkv: Affine
    attention_out: Affine
    norm_mlp: Norm
    mlp: Head

    @classmethod
    def of(cls, block: Block) -> TokenBlock:
        return cls(
            block.n_heads,
            Norm.of(block.norm_attention),
            Affine.of(block.qkv),
            Affine.of(block.attention_out),
            Norm.of(block.norm_mlp),
            Head(Affine.of(block.mlp_in), Affine.of(block.mlp_out)),
        )

    def __call__(self, x: Tensor, turn: Tensor, reach: Reach, mask: Tensor) -> Tensor:
        """x [N, E]; the token's keys and values go into its own place of `reach`.

        turn [2 (cos, sin), N, 2 (q, k), 1, D], attention's scale included; mask [N, 1, P] additive
        """
        n_rows, n_heads = len(x), self.n_heads
        qkv = self.qkv(self.norm_attention(x)).view(n_rows, 3, n_heads, -1)
        query, key = rotate(qkv[:, :2], turn).unbind(1)
        reach.own_key.copy_(key)
        reach.own_value.copy_(qkv[:, 2])
        score = torch.bmm(reach.keys, query.reshape(n_rows * n_heads, -1, 1))
        share = torch.softmax(score.view(n_rows, n_heads, -1) + mask, dim=-1)
        mixed = torch.bmm(share.view(n_rows * n_heads, 1, -1), reach.values)
        x = x + self.attention_out(mixed.view(n_rows, -1))
        return x + self.mlp(self.norm_mlp(x))


class TokenTransformer(NamedTuple):
    """The transformer for one token a row."""

    blocks: tuple[TokenBlock, ...]
    norm_out: Norm

    def __call__(self, x: Tensor, context: TokenContext, token: int) -> Tensor:
        """Features [N, E] of x [N, E]; token 0 is the action, 1 the observation."""
        turn, mask = context.turns[token], context.masks[token]
        for block, reach in zip(self.blocks, context.reach[token], strict=True):
            x = block(x, turn, reach, mask)
        return self.norm_out(x)


class TokenModel(NamedTuple):
    """All that search runs after the encoder; views of parameters, so that new weights show."""

    latent_in: Affine
    transformer: TokenTransformer
    policy_head: Head
    value_head: Head
    reward_head: Head
    latent_head: Head


class Reach(NamedTuple):
    """What one token a row reads in one layer, as views of a TokenContext.

    keys, values: [N * heads, P, D], the token's own place last
    own_key, own_value: [N, heads, D], that place
    """

    keys: Tensor
    values: Tensor
    own_key: Tensor
    own_value: Tensor


class TokenContext:
    """What the two tokens of one step read in N rows: C earlier steps, then their own step.

    Buffers that stay where they are, with all views made ahead.
    """

    def __init__(
        self,
        config: WorldModelConfig,
        model: TokenModel,
        pages: Pages,
        n_rows: int,
        n_steps: int,
    ) -> None:
        """For windows of `n_steps` = C earlier steps of `pages`, which are of the model's dtype."""
        self.model = model
        self._windows = windows = Windows(pages, n_rows, n_steps)
        kv, mask = windows.kv.flatten(4, 5), windows.mask.flatten(1)[:, None]
        ends = [2 * n_steps + 1 + slot for slot in (ACTION_SLOT, OBSERVATION_SLOT)]
        self.masks = [mask[..., :end] for end in ends]
        self.reach = [[_reach(layer, end) for layer in kv] for end in ends]
        self._own = windows.kv[..., -1, :, :].permute(2, 0, 1, 3, 4, 5)
        self._action_mask = windows.mask[:, -1, ACTION_SLOT]
        self._rotation = Rotation(config.head_dim, n_rows, like=windows.kv)
        self.turns = self._rotation.turns

    def read(self, ids: Tensor, step: Tensor) -> None:
        """Take in the pages `ids` [N, C + 1] of earlier steps and the step's own, marked whole.

        step [N] int64: the number of that step.
        """
        self._windows.read(ids)
        self._rotation.turn_to(step)

    def write(self) -> None:
        """Fill the step's own pages with both tokens' keys and values."""
        self._windows.write()

    def own(self) -> Tensor:
        """Keys and values of both tokens, as a page holds them: [N, L, 2, heads, 2 (tokens), D]."""
        return self._own

    def replace_action(self, action_kv: Tensor, has_action: Tensor) -> None:
        """Put `action_kv` [N, L, 2, heads, D] in the action's place; hide it where there is none.

        Hidden keys are zero, not only masked: a masked NaN would still reach a weighted sum.
        """
        shown = torch.where(has_action[:, None, None, None, None], action_kv, 0.0)
        self._own[..., ACTION_SLOT, :] = shown
        self._action_mask.masked_fill_(~has_action, -torch.inf)


class Rotation:
    """Rotary positions of both tokens of one step in N rows.

    turns: per token [2 (cos, signed sin), N, 2 (q, k), 1, D], as `rotate` takes them; the query's
    share carries the 1 / sqrt(D) of attention as well
    """

    def __init__(self, head_dim: int, n_rows: int, like: Tensor) -> None:
        device = like.device
        cos_sin = like.new_zeros(2, 2, n_rows, 2, 1, head_dim)
        self.turns = list(cos_sin.unbind(1))
        self._halves = cos_sin.unflatten(-1, (2, -1))
        # Angles are linear in the step. Float64, and a sine is a cosine a quarter turn behind.
        frequency = rotary_frequency(head_dim, device)
        first, second = (torch.tensor(step, device=device) for step in (0, 1))
        positions = [f(first) for f in (action_position, observation_position)]
        per_step = observation_position(second) - observation_position(first)
        quarter = torch.tensor([0.0, math.pi / 2], dtype=torch.float64, device=device)
        at_first = torch.stack(positions)[:, None] * frequency
        self._at_first = (at_first - quarter[:, None, None])[:, :, None]
        self._per_step = per_step * frequency
        self._angle = self._at_first.new_zeros(2, 2, n_rows, len(frequency))
        self._cos = self._angle[:, :, :, None, None, None]
        scale = torch.tensor([head_dim**-0.5, 1.0], dtype=torch.float64, device=device)
        sign = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64, device=device)
        self._scale = scale.view(2, 1, 1, 1) * sign.view(2, 1, 1, 1, 1, 2, 1)

    def turn_to(self, step: Tensor) -> None:
        """step [N] int64"""
        torch.add(self._at_first, step[:, None] * self._per_step, out=self._angle)
        self._angle.cos_()
        torch.mul(self._cos, self._scale, out=self._halves)


def _reach(layer: Tensor, end: int) -> Reach:
    keys, values = layer[0, :, :, :end], layer[1, :, :, :end]
    return Reach(keys.flatten(0, 1), values.flatten(0, 1), keys[:, :, -1], values[:, :, -1])
