"""The engine actor's stand-in for the serial runtime: the same calls, answered in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from actors.prior.backend import Health, PublishReport, ScoreBatch, refuse_no_warm_start
from actors.prior.config import PriorConfig
from actors.prior.transformers_backend import TransformersBackend
from learner.language.adapter import published_adapters
from learner.language.model_folder import resolve_model
from learner.language.prompt import ScoreRequest


class LocalPriorEngine:
    """Always uses transformers: vLLM's own processes would not be bit-exact. It is a PriorBackend,
    so `LocalPriorTransport(engine)` reaches it.
    """

    def __init__(
        self,
        config: PriorConfig,
        *,
        max_lora_rank: int = 0,
        adapters_dir: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Takes what PriorEngineActor takes; transformers needs no rank ahead."""
        began = time.monotonic()
        self._backend = TransformersBackend(config, resolve_model(config.model), device=device)
        self._adapters_dir = adapters_dir
        self._load_newest()
        self.start_s = time.monotonic() - began

    def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        return self._backend.score(requests)

    def publish(self, version: int, path: str) -> PublishReport:
        return self._backend.publish(version, path)

    def withdraw(self, version: int) -> None:
        """The newest on disk that is not withdrawn serves."""
        self._backend.withdraw(version)
        self._load_newest()

    def health(self) -> Health:
        return self._backend.health()

    def ping(self) -> int:
        return os.getpid()

    def close(self) -> None:
        self._backend.close()

    def _load_newest(self) -> None:
        folder = self._adapters_dir
        for adapter in reversed(published_adapters(Path(folder)) if folder else []):
            report = self._backend.publish(adapter.version, adapter.path)
            if report.accepted:
                break
            refuse_no_warm_start(report)
