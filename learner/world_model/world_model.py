"""The world model: one observation token and one action token an environment step.

Policy and value are read at the observation token, reward and next latent at the action token.
`forward` and `imagine` are the learner's view (whole windows, differentiable); `encode`,
`observation_token` and `action_token` are the search's (one token a row over cached pages).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cache.pages import Pages
from learner.world_model.config import WorldModelConfig
from learner.world_model.encoder import ImageEncoder, SimNorm, VectorEncoder
from learner.world_model.support import Support
from learner.world_model.text_encoder import make_text_encoder
from learner.world_model.token_step import (
    Affine,
    Head,
    Norm,
    TokenBlock,
    TokenContext,
    TokenModel,
    TokenTransformer,
)
from learner.world_model.transformer import (
    KeyValues,
    Transformer,
    banded_mask,
    first_visible_token,
)
from replay_service.segment import GameSpec


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Heads over T observation positions and T' actions of a window; logits, not shares.

    policy_logits: [B, T, A]
    value_logits:  [B, T, bins]
    reward_logits: [B, T', bins]
    next_latent:   [B, T', E] predicted latent of the observation after each action
    """

    policy_logits: Tensor
    value_logits: Tensor
    reward_logits: Tensor
    next_latent: Tensor


def _head(config: WorldModelConfig, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.embed_dim, config.mlp_hidden),
        nn.SiLU(),
        nn.Linear(config.mlp_hidden, n_out),
    )


def make_encoder(config: WorldModelConfig, spec: GameSpec) -> nn.Module:
    """The encoder that fits `spec`, [N, *stacked_shape] -> [N, E].

    Raises ValueError naming env.text.encoder if that can't be loaded.
    """
    if spec.is_text:
        return make_text_encoder(config, spec)
    if spec.is_image:
        return ImageEncoder(config, spec.stacked_shape)
    return VectorEncoder(config, spec.stacked_shape[0])


class WorldModel(nn.Module):
    """UniZero-family world model for one game."""

    def __init__(self, config: WorldModelConfig, spec: GameSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        width = config.embed_dim
        self.encoder = make_encoder(config, spec)
        self.latent_in = nn.Linear(width, width)
        self.action_in = nn.Embedding(spec.n_actions, width)
        self.transformer = Transformer(config)
        self.policy_head = _head(config, spec.n_actions)
        self.value_head = _head(config, config.support_size)
        self.reward_head = _head(config, config.support_size)
        self.latent_head = _head(config, width)
        self.latent_norm = SimNorm()
        self.support = Support(config.support_size, config.support_max)
        nn.init.normal_(self.action_in.weight, std=width**-0.5)
        for head in (self.policy_head, self.value_head, self.reward_head, self.latent_head):
            nn.init.zeros_(head[-1].weight)
            nn.init.zeros_(head[-1].bias)

    def encode(self, obs: Tensor) -> Tensor:
        """Latents [N, E] of observations [N, *stacked_shape], pixels, numbers or tokens."""
        return self.encoder(obs)

    def adapt_inputs(self, obs: Tensor) -> None:
        """Show the input statistics a batch of observations; only vectors need it."""
        if isinstance(self.encoder, VectorEncoder):
            self.encoder.adapt(obs)

    def store_parameters_in(self, dtype: torch.dtype) -> None:
        """For inference in low precision; input statistics and value bins stay as they are."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def lay_out_for_few_rows(self) -> None:
        """For search on a CPU: keep matrices column by column, with the values they have.

        A product with 8 rows is then twice as fast (torch 2.13 with MKL, benchmarks/search.py).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.t().contiguous().t()

    def forward(self, latents: Tensor, actions: Tensor) -> ModelOutput:
        """Teacher-forced window: latents [B, T, E], actions [B, T or T - 1] int64."""
        features, _ = self._window(latents, actions)
        return self._heads(features[:, 0::2], features[:, 1::2])

    def values(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Decoded values [B, T] of a teacher-forced window; runs the value head alone."""
        features, _ = self._window(latents, actions)
        return self.support.decode(self.value_head(features[:, 0::2]))

    def imagine(self, latents: Tensor, actions: Tensor) -> ModelOutput:
        """Like `forward` over T = T' = len(actions), with only the first R latents [B, R, E] real.

        From position R on, observation tokens are the model's own predictions, as in search.
        Gradients flow through them. Costs one pass for the real part and one a predicted step.
        """
        n_real, n_steps = latents.shape[1], actions.shape[1]
        features, kv = self._window(latents, actions[:, :n_real])
        observed, acted = [features[:, 0::2]], [features[:, 1::2]]
        predicted = [self._next_latent(acted[0])]
        oldest = 0
        for step in range(n_real, n_steps):
            latent, action = predicted[-1][:, -1], actions[:, step]
            tokens = torch.stack((self.latent_in(latent), self.action_in(action)), dim=1)
            start = first_visible_token(2 * step, self.config.window_steps)
            kv = [(k[:, :, start - oldest :], v[:, :, start - oldest :]) for k, v in kv]
            features, kv = self._extend(tokens, step, start, kv)
            oldest = start
            observed.append(features[:, :1])
            acted.append(features[:, 1:])
            predicted.append(self._next_latent(acted[-1]))
        return self._heads(torch.cat(observed, 1), torch.cat(acted, 1), torch.cat(predicted, 1))

    def token_context(self, pages: Pages, n_rows: int, n_steps: int) -> TokenContext:
        """Buffers in which tokens of `n_rows` rows read `n_steps` earlier steps of `pages`."""
        blocks = tuple(TokenBlock.of(block) for block in self.transformer.blocks)
        model = TokenModel(
            Affine.of(self.latent_in),
            TokenTransformer(blocks, Norm.of(self.transformer.norm_out)),
            Head.of(self.policy_head),
            Head.of(self.value_head),
            Head.of(self.reward_head),
            Head.of(self.latent_head),
        )
        return TokenContext(self.config, model, pages, n_rows, n_steps)

    def action_token(self, action: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """Reward logits [N, bins] and next latents [N, E] of the actions that lead to a step."""
        model = context.model
        features = model.transformer(self.action_in(action), context, token=0)
        return model.reward_head(features), self.latent_norm(model.latent_head(features))

    def observation_token(self, latent: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """Policy logits [N, A] and value logits [N, bins]; the context holds the step's action."""
        model = context.model
        features = model.transformer(model.latent_in(latent), context, token=1)
        return model.policy_head(features), model.value_head(features)

    def _window(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, list[KeyValues]]:
        """Features and kv of the interleaved tokens of one window that starts at step 0."""
        n_rows, n_latents, width = latents.shape
        n_tokens = n_latents + actions.shape[1]
        tokens = latents.new_empty(n_rows, n_tokens, width)
        tokens[:, 0::2] = self.latent_in(latents)
        tokens[:, 1::2] = self.action_in(actions)
        position = torch.arange(n_tokens, device=latents.device)[None]
        allowed = banded_mask(n_tokens, self.config.window_steps, latents.device)
        return self.transformer(tokens, position, None, allowed)

    def _extend(
        self, tokens: Tensor, step: int, start: int, past: list[KeyValues]
    ) -> tuple[Tensor, list[KeyValues]]:
        """Append o_step and a_step ([B, 2, E]); `past` holds the tokens from `start` on."""
        position = torch.arange(2 * step, 2 * step + 2, device=tokens.device)[None]
        rows = banded_mask(2 * step + 2, self.config.window_steps, tokens.device)
        return self.transformer(tokens, position, past, rows[-2:, start:])

    def _next_latent(self, features: Tensor) -> Tensor:
        return self.latent_norm(self.latent_head(features))

    def _heads(
        self, observed: Tensor, acted: Tensor, next_latent: Tensor | None = None
    ) -> ModelOutput:
        return ModelOutput(
            policy_logits=self.policy_head(observed),
            value_logits=self.value_head(observed),
            reward_logits=self.reward_head(acted),
            next_latent=self._next_latent(acted) if next_latent is None else next_latent,
        )
