"""One tiny language model for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from actors.prior.config import PriorConfig
from actors.prior.prior_engine_actor import ENGINE_ENV, MAX_CONCURRENT_CALLS, PriorEngineActor
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm

EngineStarter = Callable[..., ray.actor.ActorHandle]


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharpened, so that a wrong score shows."""
    recipe = TinyRecipe(weight_scale=4.0, n_corpus_lines=300)
    return ensure_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny", recipe)


@pytest.fixture(scope="module")
def start_engine() -> Iterator[EngineStarter]:
    """Starts engine actors as a run does; `start_engine(config, **kwargs)` returns the handle."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    owns = not ray.is_initialized()
    if owns:
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 1024 * 1024,
        )
    environment = {**ENGINE_ENV, "PYTHONPATH": str(Path(__file__).parents[3])}
    started: list[ray.actor.ActorHandle] = []

    def start(config: PriorConfig, *, max_restarts: int = 0, **kwargs: object):
        actor = (
            ray.remote(PriorEngineActor)
            .options(
                num_cpus=1,
                max_concurrency=MAX_CONCURRENT_CALLS,
                max_restarts=max_restarts,
                runtime_env={"env_vars": environment},
            )
            .remote(config, **kwargs)
        )
        started.append(actor)
        return actor

    try:
        yield start
    finally:
        for actor in started:
            ray.kill(actor)
        if owns:
            ray.shutdown()
