"""The language model in vLLM: continuous batching over all callers, shared prefixes cached.

Built and used on one event loop. Adapters are versioned: a new name and path each, so that old
requests end on the old one and no cached prefix is ever stale.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actors.prior.backend import (
    BASE_VERSION,
    Health,
    PriorUnavailable,
    PublishReport,
    ScoreBatch,
)
from actors.prior.config import PriorConfig
from learner.language.adapter import AdapterCheck
from learner.language.answer_trie import AnswerTrie
from learner.language.prompt import ScoreRequest, Thought

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as its largest rank
OLD_VERSIONS = 1  # versions kept loaded behind the serving one, for requests under way


class EngineLost(PriorUnavailable):
    """vLLM's engine process is dead; this process can't get it back."""


class VllmBackend:
    """One AsyncLLM; any number of concurrent score calls."""

    def __init__(self, config: PriorConfig, model_folder: Path, *, max_lora_rank: int = 0) -> None:
        """Takes seconds to tens of seconds; `max_lora_rank` 0 makes an engine without adapters,
        which on CPUs computes about twice as fast.
        """
        on_cpu = current_platform.is_cpu()
        dtype = config.dtype if config.dtype != "auto" or not on_cpu else "float32"
        adapters = {}
        if max_lora_rank:
            rank = next((r for r in LORA_RANKS if r >= max_lora_rank), None)
            if rank is None:
                raise ValueError(f"lora_rank must be at most {LORA_RANKS[-1]}, got {max_lora_rank}")
            adapters = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 4}
            adapters["max_lora_rank"] = rank
        arguments = AsyncEngineArgs(
            model=str(model_folder),
            skip_tokenizer_init=True,
            load_format="safetensors",  # never pickled weights
            dtype=dtype,
            enforce_eager=on_cpu,
            max_model_len=config.prompt.most_tokens + 1,
            max_num_seqs=config.max_concurrent,
            kv_cache_memory_bytes=config.kv_cache_mb * 1024 * 1024,
            disable_log_stats=True,
            **adapters,
        )
        self._engine = AsyncLLM.from_engine_args(arguments)
        self._takes_adapters = bool(adapters)
        self._tolerance = config.largest_gap(dtype)
        self._adapter: LoRARequest | None = None
        self._loaded: list[LoRARequest] = []
        self._publishing = asyncio.Lock()
        self._n_requests = 0
        self._n_scored = self._n_published = self._n_refused = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        """Raises EngineLost once the engine process is gone."""
        return await self._score(requests, self._adapter)

    async def publish(self, version: int, path: str) -> PublishReport:
        """Loads and checks an adapter while the one before goes on serving."""
        async with self._publishing:
            if not self._takes_adapters:
                return self._refuse(version, np.nan, "the engine was started without adapters")
            if version <= self._version:
                return self._refuse(version, np.nan, f"version {self._version} is serving")
            adapter = LoRARequest(f"v{version}", version, path)
            try:
                check = AdapterCheck.read(Path(path))
                await self._engine.add_lora(adapter)
            except EngineDeadError as error:
                raise EngineLost(str(error)) from error
            except Exception as error:
                # The engine process answers a bad folder with a bare Exception that quotes it.
                return self._refuse(version, np.nan, str(error))
            try:
                answers = await self._score(check.requests, adapter)
                gap = check.gap(answers.log_probs)
                reason = f"log-probabilities differ by {gap:.3g} from the trainer's"
            except ValueError as error:  # tokens that this model does not have
                gap, reason = np.inf, f"its check can't be scored: {error}"
            if gap > self._tolerance:
                await self._engine.remove_lora(version)
                return self._refuse(version, gap, reason)
            self._adapter = adapter
            self._loaded.append(adapter)
            while len(self._loaded) > 1 + OLD_VERSIONS:
                await self._engine.remove_lora(self._loaded.pop(0).lora_int_id)
            self._n_published += 1
            return PublishReport(version, True, gap)

    async def health(self) -> Health:
        """Raises EngineLost once the engine process is gone."""
        try:
            await self._engine.check_health()
        except EngineDeadError as error:
            raise EngineLost(str(error)) from error
        return Health(
            f"vllm pid {os.getpid()}",
            self._version,
            self._n_scored,
            self._n_published,
            self._n_refused,
        )

    async def close(self) -> None:
        self._engine.shutdown()

    @property
    def _version(self) -> int:
        return self._adapter.lora_int_id if self._adapter is not None else BASE_VERSION

    async def _score(
        self, requests: Sequence[ScoreRequest], adapter: LoRARequest | None
    ) -> ScoreBatch:
        rows = await asyncio.gather(*(self._score_one(request, adapter) for request in requests))
        self._n_scored += len(requests)
        return ScoreBatch(tuple(rows), adapter.lora_int_id if adapter is not None else BASE_VERSION)

    async def _score_one(
        self, request: ScoreRequest, adapter: LoRARequest | None
    ) -> NDArray[np.float32]:
        """Joint log-probabilities of the answers, [K]; NaN where vLLM left a token out.

        One read for each place where an answer may go on. They are sent together, and vLLM computes
        the prompt that they share once.
        """
        prompt = request.token_ids
        if request.thought is not None:
            prompt = (*prompt, *await self._think(prompt, request.thought, adapter))
        trie = AnswerTrie(request.answers)
        reads = await asyncio.gather(
            *(
                self._read((*prompt, *prefix), children, adapter)
                for prefix, children in zip(trie.prefixes, trie.children, strict=True)
            )
        )
        return np.array(trie.join(reads), np.float32)

    async def _read(
        self, token_ids: tuple[int, ...], wanted: Sequence[int], adapter: LoRARequest | None
    ) -> list[float]:
        """Log-probabilities of the `wanted` tokens as the next one."""
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(wanted),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        output = await self._generate(token_ids, sampling, adapter)
        assert output.logprobs is not None, output
        read = output.logprobs[0]
        return [read[token].logprob if token in read else np.nan for token in wanted]

    async def _think(
        self, token_ids: tuple[int, ...], thought: Thought, adapter: LoRARequest | None
    ) -> tuple[int, ...]:
        sampling = SamplingParams(
            max_tokens=thought.max_tokens,
            temperature=0.0,
            stop_token_ids=list(thought.stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        output = await self._generate(token_ids, sampling, adapter)
        return thought.complete(list(output.token_ids))

    async def _generate(
        self, token_ids: tuple[int, ...], sampling: SamplingParams, adapter: LoRARequest | None
    ) -> CompletionOutput:
        self._n_requests += 1
        final = None
        try:
            async for output in self._engine.generate(
                TokensPrompt(prompt_token_ids=list(token_ids)),
                sampling,
                str(self._n_requests),
                lora_request=adapter,
            ):
                final = output
        except EngineDeadError as error:
            raise EngineLost(str(error)) from error
        assert final is not None
        return final.outputs[0]

    def _refuse(self, version: int, gap: float, reason: str) -> PublishReport:
        self._n_refused += 1
        return PublishReport(version, False, float(gap), reason)
