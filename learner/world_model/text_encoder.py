"""Token ids of a text to one latent: a small encoder from scratch, or a Hugging Face one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from learner.world_model.config import WorldModelConfig
from learner.world_model.encoder import SimNorm
from learner.world_model.text_tokens import HASHED, unusable_encoder
from replay_service.segment import GameSpec

_PHRASE = 3  # words that are read together


class TextEncoder(nn.Module):
    """[N, L] int32 -> [N, E]; embeddings of words, of phrases of three, pooled over the text.

    The mean says what a text is about, the maximum whether a phrase occurs in it. Without
    attention, so that a text of 100 words costs a CPU about as much as a 64 x 64 image.
    """

    def __init__(self, config: WorldModelConfig, n_tokens: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.words = nn.Embedding(n_tokens, width, padding_idx=0)
        self.phrases = nn.Conv1d(width, width, _PHRASE, padding=_PHRASE // 2)
        self.layers = nn.Sequential(
            nn.LayerNorm(2 * width),
            nn.Linear(2 * width, config.mlp_hidden),
            nn.SiLU(),
            nn.Linear(config.mlp_hidden, width),
            SimNorm(),
        )

    def forward(self, obs: Tensor) -> Tensor:
        is_word = (obs > 0).unsqueeze(1)  # [N, 1, L]
        words = self.words(obs.long()).transpose(1, 2)  # [N, E, L]
        phrases = words + nn.functional.silu(self.phrases(words))
        n_words = is_word.sum(-1).clamp(min=1)
        mean = phrases.masked_fill(~is_word, 0.0).sum(-1) / n_words
        # Of no words at all the maximum is 0, not minus infinity.
        highest = phrases.masked_fill(~is_word, torch.finfo(phrases.dtype).min).amax(-1)
        highest = highest * is_word.any(-1)
        return self.layers(torch.cat((mean, highest), dim=-1))


class PretrainedTextEncoder(nn.Module):
    """[N, L] int32, ids of the encoder's own tokenizer plus one -> [N, E]; mean over last states.

    Frozen, the encoder is no part of this module's state: weights that are published and saved hold
    the projection alone, and a process holds one copy however many models it has.
    """

    def __init__(self, config: WorldModelConfig, name: str, length: int) -> None:
        super().__init__()
        self._name = name
        self.trained = load_pretrained(name) if config.train_text_encoder else None
        settings = (self.trained or _shared(name, "cpu")).config
        longest = getattr(settings, "max_position_embeddings", None) or length
        if length > longest:
            raise ValueError(
                f"env.text.max_tokens {length} is more than the {longest} tokens that "
                f"env.text.encoder {name!r} can read; lower it"
            )
        self.project = nn.Sequential(
            nn.LayerNorm(settings.hidden_size),
            nn.Linear(settings.hidden_size, config.embed_dim),
            SimNorm(),
        )

    def forward(self, obs: Tensor) -> Tensor:
        is_token = obs > 0
        ids = (obs.long() - 1).clamp(min=0)
        if self.trained is not None:
            states = self.trained(input_ids=ids, attention_mask=is_token.long()).last_hidden_state
        else:
            with torch.no_grad():
                encoder = _shared(self._name, str(obs.device))
                states = encoder(input_ids=ids, attention_mask=is_token.long()).last_hidden_state
        states = states.masked_fill(~is_token.unsqueeze(-1), 0.0)
        mean = states.sum(1) / is_token.sum(1, keepdim=True).clamp(min=1)
        return self.project(mean.to(self.project[1].weight.dtype))


def load_pretrained(name: str) -> nn.Module:
    """A Hugging Face encoder in evaluation mode, float32. Raises ValueError."""
    from transformers import AutoModel  # seconds to import: only where it is asked for

    try:
        return AutoModel.from_pretrained(name, dtype=torch.float32).eval()
    except (OSError, ValueError) as error:
        raise unusable_encoder(name, error) from error


@cache
def _shared(name: str, device: str) -> nn.Module:
    return load_pretrained(name).requires_grad_(False).to(device)


def make_text_encoder(config: WorldModelConfig, spec: GameSpec) -> nn.Module:
    """The encoder of a text world, by the one that made its token ids."""
    if spec.text_encoder == HASHED:
        return TextEncoder(config, spec.n_tokens)
    return PretrainedTextEncoder(config, spec.text_encoder, spec.stacked_shape[0])
