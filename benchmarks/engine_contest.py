"""One engine, asked in this project's ways and in PriorZero's; see prior_engine.py."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from vllm import SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from actors.prior.config import PriorConfig
from actors.prior.vllm_backend import VllmBackend
from learner.language.prompt import PromptBuilder, ScoreRequest
from learner.language.prompt_config import PromptConfig
from learner.language.tiny_llm import ensure_tiny_llm

METHODS = ("label", "text", "prompts")
LONGEST_TOKENS = 1200  # room for 55 commands and the whole state
LARGEST_GAP = 1e-3  # of joint log-probabilities, float32
LARGEST_HALF_GAP = 0.5  # of single ones it is a tenth; an answer has several tokens
VERBS = ("take", "drop", "open", "close", "examine", "cook", "slice", "push")
THINGS = ("brass key", "old lamp", "carrot", "wooden door", "chest", "knife", "stove", "red apple")
COMMANDS = tuple(f"{verb} the {thing}" for verb in VERBS for thing in THINGS)
ROOMS = ("kitchen", "cellar", "attic", "garden", "pantry", "corridor", "workshop", "bedroom")


@dataclass(slots=True)
class Cell:
    """What was seen of one method at one size."""

    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    computed_tokens: int = 0

    @property
    def states_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def tokens_per_state(self) -> float:
        return self.computed_tokens / len(self.latencies_s)


Ask = Callable[[ScoreRequest], Awaitable[None]]


class Contest:
    """One engine, the same for all methods, and the questions that it is asked."""

    def __init__(self, folder: Path, device: str, kv_cache_mb: int) -> None:
        # An answer that is read as part of the prompt leaves no token to be made.
        prompt = PromptConfig(max_tokens=LONGEST_TOKENS + 1)
        self._backend = VllmBackend(
            PriorConfig(model=str(folder), prompt=prompt, kv_cache_mb=kv_cache_mb), folder
        )
        self.largest_gap = LARGEST_HALF_GAP if device == "cuda" else LARGEST_GAP
        self._builders = {
            scoring: PromptBuilder(
                folder, PromptConfig(scoring=scoring, max_tokens=LONGEST_TOKENS), seed=0
            )
            for scoring in ("label", "text")
        }
        self._states = _states(np.random.default_rng(0))
        self._n_asked = 0
        self._computed_tokens = 0

    def question(self, method: str, n_options: int) -> ScoreRequest:
        """About a state that was not asked about before."""
        scoring = "label" if method == "label" else "text"
        builder = self._builders[scoring]
        return builder.build(next(self._states), COMMANDS[:n_options]).request

    async def score(self, request: ScoreRequest) -> np.ndarray:
        (scores,) = (await self._backend.score([request])).log_probs
        return scores

    async def score_prompts(self, request: ScoreRequest) -> np.ndarray:
        """Joint log-probabilities, [K], by K whole prompts."""
        answers = request.answers
        return np.array(
            await asyncio.gather(*(self._score_prompt(request.token_ids, a) for a in answers))
        )

    async def _score_prompt(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        sampling = SamplingParams(
            max_tokens=1,
            prompt_logprobs=1,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        token_ids = [*prompt, *answer]
        self._n_asked += 1
        final = None
        async for output in self._backend._engine.generate(  # the one that answers both
            TokensPrompt(prompt_token_ids=token_ids), sampling, f"prompts-{self._n_asked}"
        ):
            final = output
        assert final is not None and final.prompt_logprobs is not None
        self._computed_tokens += len(token_ids) - (final.num_cached_tokens or 0)
        rows = final.prompt_logprobs[len(prompt) :]
        return sum(row[token].logprob for row, token in zip(rows, answer, strict=True))

    async def computed_tokens(self) -> int:
        """Of all prompts so far."""
        health = await self._backend.health()
        return self._computed_tokens + health.n_prompt_tokens - health.n_cached_tokens

    def asker(self, method: str) -> Ask:
        return self.score_prompts if method == "prompts" else self.score

    async def measure(self, cell: Cell, method: str, n: int, n_options: int, s: float) -> None:
        """`n` states in flight for `s` seconds; whoever has begun finishes."""
        ask = self.asker(method)
        tokens, started = await self.computed_tokens(), time.perf_counter()

        async def work() -> None:
            while True:
                request = self.question(method, n_options)
                began = time.perf_counter()
                await ask(request)
                cell.latencies_s.append(time.perf_counter() - began)
                if time.perf_counter() - started >= s:
                    return

        await asyncio.gather(*(work() for _ in range(n)))
        cell.seconds += time.perf_counter() - started
        cell.computed_tokens += await self.computed_tokens() - tokens

    async def compare(self, n_options: int) -> float:
        """Largest difference between `text` and `prompts`."""
        request = self.question("text", n_options)
        return float(np.abs(await self.score(request) - await self.score_prompts(request)).max())


def _states(rng: np.random.Generator) -> Iterator[str]:
    """Rooms of a text game, each different from its first words on."""
    for number in itertools.count():
        rooms, things = rng.permutation(ROOMS), rng.permutation(THINGS)
        steps = [
            f"You went to the {room} and saw the {thing} there. The door to the north is open."
            for room, thing in zip(rooms, things, strict=True)
        ]
        yield f"Move {number}. {' '.join(steps)} You are in the {rooms[-1]} now."


def make_half_billion(folder: Path) -> Path:
    """Random weights in the shapes of Qwen2.5-0.5B, with the tiny model's tokenizer."""
    tiny = ensure_tiny_llm()
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    config = Qwen2Config.from_pretrained(tiny)
    config.update(
        {
            "vocab_size": 151_936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "layer_types": ["full_attention"] * 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "head_dim": 64,
        }
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


async def hold(
    folder: Path,
    device: str,
    *,
    kv_cache_mb: int,
    concurrent: Sequence[int],
    n_options: Sequence[int],
    seconds: float,
    rounds: int,
) -> None:
    """Prints a table with a row for each method and size; SystemExit if methods disagree."""
    contest = Contest(folder, device, kv_cache_mb)
    gap = max([await contest.compare(n) for n in n_options])
    print(f"[benchmark] text and prompts differ by {gap:.1e} at most", flush=True)
    if not gap <= contest.largest_gap:
        raise SystemExit("[benchmark] the two methods do not measure the same")
    print(HEAD)
    for k, n in itertools.product(n_options, concurrent):
        cells = {method: Cell() for method in METHODS}
        for _ in range(rounds):
            for method, cell in cells.items():
                await contest.measure(cell, method, n, k, seconds)
        for method, cell in cells.items():
            print(row(method, n, k, cell, cells["prompts"]), flush=True)


HEAD = (
    "| K | states in flight | method | states/s | p50 ms | p99 ms | computed tokens a state | "
    "states/s, prompts = 1 | computed tokens, fewer by | states |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def row(method: str, n: int, n_options: int, cell: Cell, theirs: Cell) -> str:
    p50, p99 = np.percentile(cell.latencies_s, [50, 99]) * 1e3
    return (
        f"| {n_options} | {n} | {method} | {cell.states_per_s:.1f} | {p50:.0f} | {p99:.0f} | "
        f"{cell.tokens_per_state:,.0f} | {cell.states_per_s / theirs.states_per_s:.1f} | "
        f"{theirs.tokens_per_state / cell.tokens_per_state:.1f} | {len(cell.latencies_s)} |"
    )
