"""The language model in vLLM: continuous batching over all callers, shared prefixes cached.

Built and used on one event loop. Adapters are versioned: a new name and path each, so that old
requests end on the old one and no cached prefix is ever stale. Whole models replace each other in
place, while no question is under way.
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
from vllm.outputs import RequestOutput
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
from actors.prior.turnstile import Turnstile
from learner.language.adapter import AdapterCheck, check_whole_model, holds_whole_model
from learner.language.answer_trie import AnswerTrie
from learner.language.prompt import ScoreRequest, Thought

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts as its largest rank
# Whole blocks are shared: with vLLM's 128 on a CPU, questions about one prompt compute most of it
# again. Its kernels want multiples of 32.
CPU_BLOCK_TOKENS = 32
_FIRST_ID = 1  # vLLM numbers adapters from 1, our versions begin with 0
OLD_VERSIONS = 1  # versions kept loaded behind the serving one, for requests under way


class EngineLost(PriorUnavailable):
    """vLLM's engine process is dead; this process can't get it back."""


class VllmBackend:
    """One AsyncLLM; any number of concurrent score calls."""

    def __init__(self, config: PriorConfig, model_folder: Path, *, max_lora_rank: int = 0) -> None:
        """Takes seconds to tens of seconds; `max_lora_rank` 0 makes an engine that takes whole
        models instead of adapters, and on CPUs computes about twice as fast.
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
            block_size=CPU_BLOCK_TOKENS if on_cpu else None,
            disable_log_stats=True,
            worker_extension_cls="actors.prior.vllm_worker.WorkerExtension",
            **adapters,
        )
        self._engine = AsyncLLM.from_engine_args(arguments)
        self._takes_adapters = bool(adapters)
        self._tolerance = config.largest_gap(dtype)
        self._loaded: list[LoRARequest] = []  # the last one serves
        self._withdrawn: list[LoRARequest] = []  # loaded for questions under way
        self._base_folder = self._whole_folder = model_folder
        self._whole_version = BASE_VERSION
        self._publishing = asyncio.Lock()
        self._turnstile = Turnstile()
        self._n_requests = self._n_prompt_tokens = self._n_cached_tokens = 0
        self._n_scored = self._n_published = self._n_refused = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        """Raises EngineLost once the engine process is gone."""
        async with self._turnstile.inside():
            return await self._score(requests, self._adapter)

    async def publish(self, version: int, path: str) -> PublishReport:
        """Loads and checks an adapter while the one before goes on serving, or a whole model once
        the questions under way are answered.
        """
        async with self._publishing:
            is_warm_start = version == BASE_VERSION and self._adapter is None
            if version == self._version and not is_warm_start:  # loaded before the call came
                return PublishReport(version, True, np.nan)
            if version < self._version:
                return self._refuse(version, np.nan, f"version {self._version} is serving")
            try:
                check = AdapterCheck.read(Path(path))
            except ValueError as error:
                return self._refuse(version, np.nan, str(error))
            is_whole = holds_whole_model(Path(path))
            if is_whole == self._takes_adapters:
                takes = "adapters" if self._takes_adapters else "whole models"
                return self._refuse(version, np.nan, f"the engine was started to take {takes}")
            publish = self._publish_whole if is_whole else self._publish_adapter
            report = await publish(version, path, check)
            self._n_published += report.accepted
            return report

    async def _publish_adapter(self, version: int, path: str, check: AdapterCheck) -> PublishReport:
        adapter = LoRARequest(f"v{version}", version + _FIRST_ID, path)
        try:
            await self._engine.add_lora(adapter)
        except EngineDeadError as error:
            raise EngineLost(str(error)) from error
        except Exception as error:
            # The engine process answers a bad folder with a bare Exception that quotes it.
            return self._refuse(version, np.nan, str(error))
        gap, reason = await self._gap(check, adapter)
        if gap > self._tolerance:
            await self._engine.remove_lora(adapter.lora_int_id)
            return self._refuse(version, gap, reason)
        self._loaded.append(adapter)
        old, self._withdrawn = self._withdrawn, []
        while len(self._loaded) > 1 + OLD_VERSIONS:
            old.append(self._loaded.pop(0))
        for unused in old:
            await self._engine.remove_lora(unused.lora_int_id)
        return PublishReport(version, True, gap)

    async def withdraw(self, version: int) -> None:
        """The adapter before serves again; in place of a whole model, the model as loaded."""
        async with self._publishing:
            self._withdrawn += [a for a in self._loaded if _version_of(a) == version]
            self._loaded = [a for a in self._loaded if _version_of(a) != version]
            if version == self._whole_version != BASE_VERSION:
                async with self._turnstile.closed():
                    await self._reload(self._base_folder)
                    self._whole_folder, self._whole_version = self._base_folder, BASE_VERSION

    async def _publish_whole(self, version: int, path: str, check: AdapterCheck) -> PublishReport:
        folder = Path(path)
        try:
            # Before anything is touched: a load that stops half way leaves no model at all.
            await asyncio.to_thread(check_whole_model, folder, self._base_folder)
        except ValueError as error:
            return self._refuse(version, np.nan, str(error))
        async with self._turnstile.closed():
            await self._reload(folder)
            gap, reason = await self._gap(check, None)
            if gap > self._tolerance:
                await self._reload(self._whole_folder)
                return self._refuse(version, gap, reason)
            self._whole_folder, self._whole_version = folder, version
        return PublishReport(version, True, gap)

    async def _reload(self, folder: Path) -> None:
        """Puts other weights in place. Raises EngineLost if it fails: what the engine then holds
        is anybody's guess, and only a new process has a model again.
        """
        try:
            await self._engine.pause_generation(mode="wait")
            await self._engine.collective_rpc(
                "reload_weights", kwargs={"weights_path": str(folder), "is_checkpoint_format": True}
            )
            await self._engine.collective_rpc("repack_head")
            await self._engine.reset_prefix_cache()
            await self._engine.resume_generation()
        except Exception as error:
            raise EngineLost(f"weights from {folder} could not be put in place: {error}") from error

    async def _gap(self, check: AdapterCheck, adapter: LoRARequest | None) -> tuple[float, str]:
        """Largest difference to the trainer's log-probabilities, and what it would mean."""
        try:
            answers = await self._score(check.requests, adapter)
        except ValueError as error:  # tokens that this model does not have
            return np.inf, f"its check can't be scored: {error}"
        gap = check.gap(answers.log_probs)
        return gap, f"log-probabilities differ by {gap:.3g} from the trainer's"

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
            self._n_prompt_tokens,
            self._n_cached_tokens,
        )

    async def close(self) -> None:
        self._engine.shutdown()

    @property
    def _adapter(self) -> LoRARequest | None:
        return self._loaded[-1] if self._loaded else None

    @property
    def _version(self) -> int:
        return self._whole_version if self._adapter is None else _version_of(self._adapter)

    async def _score(
        self, requests: Sequence[ScoreRequest], adapter: LoRARequest | None
    ) -> ScoreBatch:
        rows = await asyncio.gather(*(self._score_one(request, adapter) for request in requests))
        self._n_scored += len(requests)
        version = self._whole_version if adapter is None else _version_of(adapter)
        return ScoreBatch(tuple(rows), version)

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
        output = (await self._generate(token_ids, sampling, adapter)).outputs[0]
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
        output = (await self._generate(token_ids, sampling, adapter)).outputs[0]
        return thought.complete(list(output.token_ids))

    async def _generate(
        self, token_ids: tuple[int, ...], sampling: SamplingParams, adapter: LoRARequest | None
    ) -> RequestOutput:
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
        self._n_prompt_tokens += len(token_ids)
        self._n_cached_tokens += final.num_cached_tokens or 0
        return final

    def _refuse(self, version: int, gap: float, reason: str) -> PublishReport:
        self._n_refused += 1
        return PublishReport(version, False, float(gap), reason)


def _version_of(adapter: LoRARequest) -> int:
    return adapter.lora_int_id - _FIRST_ID
