"""Reads the log-probabilities of answers from a transformers model, batched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from learner.language.answer_trie import AnswerTrie
from learner.language.prompt import ScoreRequest, Thought


def load_causal_lm(folder: Path, dtype: str, device: str) -> tuple[nn.Module, int]:
    """A causal language model in evaluation mode, and a token id to pad with."""
    transformers.utils.logging.disable_progress_bar()
    # No weights that are pickled, no code that comes with a model.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    eos = model.config.eos_token_id
    return model.to(device).eval(), int(eos[0] if isinstance(eos, list) else eos or 0)


def answer_log_probs(
    model: nn.Module, requests: Sequence[ScoreRequest], pad_id: int
) -> list[Tensor]:
    """Per request [K] float32: full-vocabulary joint log-probabilities of its answers.

    One row a request, however many answers: behind the prompt stand the inner nodes of the answers'
    tree, each of which attends to the prompt and its own ancestors only. Thoughts come first, by
    greedy decoding without gradients.
    """
    prompts = [_with_thought(model, request, pad_id) for request in requests]
    tries = [AnswerTrie(request.answers) for request in requests]
    ids, mask, positions = _rows(prompts, tries, pad_id)
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    n_nodes = max(len(trie.prefixes) for trie in tries)
    attention = mask[:, -1].long() if n_nodes == 1 else _additive(mask, dtype)
    logits = model(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        position_ids=positions.to(device),
        use_cache=False,
        logits_to_keep=n_nodes,
    ).logits.float()  # half-precision sums lose a few percent
    rows, nodes, tokens = _reads(tries)
    # One gather of all: going back, each gather writes a gradient as large as all logits.
    reads = logits[rows, nodes, tokens] - logits.logsumexp(-1)[rows, nodes]
    of_nodes = iter(reads.split([len(children) for trie in tries for children in trie.children]))
    return [
        torch.stack(trie.join([next(of_nodes).unbind() for _ in trie.children])) for trie in tries
    ]


def _reads(tries: Sequence[AnswerTrie]) -> tuple[list[int], list[int], list[int]]:
    """Row, node and token of every log-probability that the answers need, node by node."""
    found = [
        (row, node, token)
        for row, trie in enumerate(tries)
        for node, children in enumerate(trie.children)
        for token in children
    ]
    rows, nodes, tokens = zip(*found, strict=True)
    return list(rows), list(nodes), list(tokens)


def _rows(
    prompts: Sequence[Sequence[int]], tries: Sequence[AnswerTrie], pad_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, L], who may attend to whom [B, L, L] bool, positions [B, L].

    Prompts end in the same column, so that the nodes' logits are the last ones of every row: the
    root's is that of the prompt's last token.
    """
    width = max(map(len, prompts))
    length = width + max(len(trie.prefixes) for trie in tries) - 1
    ids = torch.full((len(prompts), length), pad_id)
    positions = torch.zeros((len(prompts), length), dtype=torch.int64)
    mask = torch.zeros((len(prompts), length, length), dtype=torch.bool)
    mask[:] = torch.eye(length, dtype=torch.bool)  # padding too: a row of nothing would be NaN
    for row, (prompt, trie) in enumerate(zip(prompts, tries, strict=True)):
        start = width - len(prompt)
        ids[row, start:width] = torch.tensor(prompt)
        positions[row, start:width] = torch.arange(len(prompt))
        mask[row, start:width, start:width] = torch.ones(len(prompt), len(prompt)).tril().bool()
        for node in range(1, len(trie.prefixes)):
            column = width - 1 + node
            ids[row, column] = trie.prefixes[node][-1]
            positions[row, column] = len(prompt) - 1 + len(trie.prefixes[node])
            mask[row, column] |= mask[row, width - 1 + trie.parents[node]]
    return ids, mask, positions


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, L, L] bool -> [B, 1, L, L], what attention adds to its scores."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype).unsqueeze(1)


def _with_thought(model: nn.Module, request: ScoreRequest, pad_id: int) -> tuple[int, ...]:
    if request.thought is None:
        return request.token_ids
    return (*request.token_ids, *_think(model, request.token_ids, request.thought, pad_id))


@torch.no_grad()
def _think(
    model: nn.Module, token_ids: tuple[int, ...], thought: Thought, pad_id: int
) -> tuple[int, ...]:
    ids = torch.tensor([token_ids], device=next(model.parameters()).device)
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=thought.max_tokens,
        do_sample=False,
        eos_token_id=list(thought.stop_ids),
        pad_token_id=pad_id,
    )[0, len(token_ids) :].tolist()
    return thought.complete(said)
