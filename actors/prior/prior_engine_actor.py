"""The process that serves the language model, and how clients reach it over Ray.

An async actor: give it `max_concurrency=MAX_CONCURRENT_CALLS` and the environment ENGINE_ENV (on a
GPU machine `engine_env("cuda")`). It starts its engine on `start`, or by itself when a question
comes, so a restarted actor needs nobody to set it up.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from actors.prior.backend import (
    AsyncPriorBackend,
    Health,
    PriorBackend,
    PriorUnavailable,
    PublishReport,
    ScoreBatch,
    refuse_no_warm_start,
)
from actors.prior.config import PriorConfig
from learner.language.adapter import published_adapters
from learner.language.model_folder import resolve_model
from learner.language.prompt import PromptBuilder, ScoreRequest

MAX_CONCURRENT_CALLS = 512  # calls under way in one engine actor: env actors x halves, and spare
AWAY_S = 30.0  # seconds for which a client leaves an engine alone that failed it or was late
LATE_SHARE = 0.9  # of the deadline: when it is over, the next question is to go elsewhere

Answer = TypeVar("Answer")

# One process less on CPUs, no binding of threads to cores that other actors use, no telemetry.
# oneDNN keeps what it compiles for each number of tokens in a batch, 1,024 of them by default, and
# the numbers are all different: the engine would grow for hours.
ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "TOKENIZERS_PARALLELISM": "false",
}

# Its own process computes on the GPU; a forked one can't, once this one has touched CUDA.
CUDA_ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}


def engine_env(device: str) -> dict[str, str]:
    """Environment variables of the engine's process, which must be set before it imports vLLM."""
    return ENGINE_ENV | (CUDA_ENGINE_ENV if device == "cuda" else {})


@dataclass(frozen=True, slots=True)
class EngineReady:
    """A started engine."""

    pid: int
    model: str
    version: int  # adapter it serves
    start_s: float


class PriorEngineActor:
    """Owns one backend; every method is a coroutine on the actor's own event loop."""

    def __init__(
        self,
        config: PriorConfig,
        *,
        max_lora_rank: int = 0,
        adapters_dir: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """`max_lora_rank` is the language learner's or the warm start's, 0 without both. From
        `adapters_dir` the newest adapter that passes its check is loaded at start.
        """
        self._config = config
        self._max_lora_rank = max_lora_rank
        self._adapters_dir = Path(adapters_dir) if adapters_dir is not None else None
        self._device = device
        self._backend: AsyncPriorBackend | None = None
        self._starting: asyncio.Task[EngineReady] | None = None

    async def start(self) -> EngineReady:
        """Builds and warms up the engine, once; later calls wait for the first and agree."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        """Raises PriorUnavailable at once while the engine is not ready."""
        if self._backend is None:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start())
            elif self._starting.done():
                self._starting.result()
            raise PriorUnavailable("the engine is starting")
        return await self._guard(self._backend.score(requests))

    async def publish(self, version: int, path: str) -> PublishReport:
        """See PriorBackend.publish; a refused adapter leaves the one before serving."""
        await self.start()
        return await self._guard(self._backend.publish(version, path))

    async def withdraw(self, version: int) -> None:
        """Goes back from a version that is wrong on some engine to the newest on disk that is not
        withdrawn.
        """
        await self.start()
        await self._guard(self._backend.withdraw(version))
        await self._guard(self._load_newest(self._backend))

    async def health(self) -> Health:
        await self.start()
        return await self._guard(self._backend.health())

    async def ping(self) -> int:
        """The process id, once the engine is ready."""
        return (await self.start()).pid

    async def close(self) -> None:
        """Ends the engine's processes in order."""
        if self._backend is not None:
            await self._backend.close()

    async def _start(self) -> EngineReady:
        began = time.monotonic()
        folder = resolve_model(self._config.model)
        backend = await self._build(folder)
        builder = PromptBuilder(folder, self._config.prompt, seed=0)
        prompt = builder.build("warming up", ("yes", "no"))
        # The first request compiles and allocates for seconds.
        await backend.score([prompt.request])
        version = await self._load_newest(backend)
        self._backend = backend
        return EngineReady(os.getpid(), str(folder), version, time.monotonic() - began)

    async def _build(self, folder: Path) -> AsyncPriorBackend:
        if self._config.backend == "transformers":
            from actors.prior.transformers_backend import TransformersBackend

            return ThreadedBackend(TransformersBackend(self._config, folder, device=self._device))
        from actors.prior.vllm_backend import VllmBackend

        return VllmBackend(self._config, folder, max_lora_rank=self._max_lora_rank)

    async def _load_newest(self, backend: AsyncPriorBackend) -> int:
        if self._adapters_dir is not None:
            for adapter in reversed(published_adapters(self._adapters_dir)):
                report = await backend.publish(adapter.version, adapter.path)
                if report.accepted:
                    break
                refuse_no_warm_start(report)
        return (await backend.health()).version

    async def _guard(self, answer: Awaitable[Answer]) -> Answer:
        """Leaves the process when vLLM's engine is dead: Ray then starts a working one."""
        try:
            return await answer
        except PriorUnavailable:
            os._exit(1)


class ThreadedBackend:
    """Runs a plain backend in a thread, one call at a time, so that the event loop stays free."""

    def __init__(self, backend: PriorBackend) -> None:
        self._backend = backend
        self._turn = asyncio.Lock()

    async def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        async with self._turn:
            return await asyncio.to_thread(self._backend.score, requests)

    async def publish(self, version: int, path: str) -> PublishReport:
        async with self._turn:
            return await asyncio.to_thread(self._backend.publish, version, path)

    async def withdraw(self, version: int) -> None:
        async with self._turn:
            await asyncio.to_thread(self._backend.withdraw, version)

    async def health(self) -> Health:
        return self._backend.health()

    async def close(self) -> None:
        self._backend.close()


class RayPriorTransport:
    """Reaches PriorEngineActors; travels to env actors inside their arguments.

    Each client has a home among the engines. One that fails or misses the deadline is left alone
    for `AWAY_S`; meanwhile the next one round is asked. If all have failed, the home is asked.
    """

    def __init__(
        self, *engines: ActorHandle, home: int = 0, deadline_s: float = float("inf")
    ) -> None:
        """home: index of an engine, modulo their number; deadline_s: `prior.deadline_s`"""
        first = home % len(engines)
        self._engines = [*engines[first:], *engines[:first]]
        self._late_s = LATE_SHARE * deadline_s
        self._away_until = [0.0] * len(engines)
        self._sent: dict[Hashable, tuple[int, float]] = {}  # which engine, when

    def submit(self, requests: tuple[ScoreRequest, ...]) -> Hashable:
        index, sent_at = self._choose(), time.monotonic()
        try:
            handle = self._engines[index].score.remote(requests)
        except RayError as error:
            self._avoid(index)
            raise PriorUnavailable(str(error)) from error
        self._sent[handle] = (index, sent_at)
        return handle

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        refs = list(handles)
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if done and len(refs) > 1:  # take along what else is there
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return done

    def result(self, handle: Hashable) -> ScoreBatch:
        index, _ = self._sent.pop(handle)
        try:
            return ray.get(handle)
        except RayError as error:
            is_refusal = isinstance(error, RayTaskError)
            if not is_refusal or isinstance(error.cause, PriorUnavailable):
                self._avoid(index)  # not for a question that it could not take
            raise PriorUnavailable(str(error)) from error

    def forget(self, handle: Hashable) -> None:
        self._sent.pop(handle, None)
        ray.cancel(handle, force=False)

    def _choose(self) -> int:
        """The first engine that is not left alone; home if all are."""
        now = time.monotonic()
        for index, sent_at in self._sent.values():
            if now - sent_at > self._late_s and self._away_until[index] <= now:
                self._avoid(index)
        here = [i for i, until in enumerate(self._away_until) if until <= now]
        return here[0] if here else 0

    def _avoid(self, index: int) -> None:
        self._away_until[index] = time.monotonic() + AWAY_S
