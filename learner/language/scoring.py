"""Reads the log-probabilities of label tokens from a transformers model, batched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn


def load_causal_lm(folder: Path, dtype: str, device: str) -> tuple[nn.Module, int]:
    """A causal language model in evaluation mode, and a token id to pad with."""
    transformers.utils.logging.disable_progress_bar()
    # No weights that are pickled, no code that comes with a model.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    eos = model.config.eos_token_id
    return model.to(device).eval(), int(eos[0] if isinstance(eos, list) else eos or 0)


def label_log_probs(
    model: nn.Module,
    token_ids: Sequence[Sequence[int]],
    label_ids: Sequence[Sequence[int]],
    pad_id: int,
) -> list[Tensor]:
    """Per prompt [K] float32: full-vocabulary log-probabilities of its labels as the next token.

    Prompts are padded on the left, so that one row of logits each is all that is computed.
    """
    device = next(model.parameters()).device
    width = max(len(ids) for ids in token_ids)
    ids = torch.full((len(token_ids), width), pad_id)
    mask = torch.zeros((len(token_ids), width), dtype=torch.int64)
    for row, prompt in enumerate(token_ids):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]
    log_probs = logits.float().log_softmax(-1)  # float32: half-precision sums lose a few percent
    return [
        log_probs[row, torch.tensor(labels, device=device)] for row, labels in enumerate(label_ids)
    ]
