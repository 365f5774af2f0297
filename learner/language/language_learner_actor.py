"""The process shell of the language learner: pulls examples from replay and answers calls."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import ray
import torch
from ray.actor import ActorHandle

from learner.language.adapter import Adapter
from learner.language.config import LanguageConfig
from learner.language.language_learner import LanguageLearner, LanguageReport, TextSource
from learner.language.model_folder import resolve_model
from learner.language.prompt_config import PromptConfig
from replay_service.targets import TextBatch

SAMPLE_TIMEOUT_S = 60.0


class RayTextSource:
    """Asks a replay actor for examples; made by the controller, used by the learner's process."""

    def __init__(self, replay: ActorHandle, batch_size: int) -> None:
        self._replay = replay
        self._batch_size = batch_size

    def next(self) -> TextBatch | None:
        """Raises GetTimeoutError when replay does not answer for a minute."""
        answer = self._replay.sample_text.remote(self._batch_size)
        return ray.get(answer, timeout=SAMPLE_TIMEOUT_S)


class LanguageLearnerActor:
    """Called by the controller, one call at a time."""

    def __init__(
        self,
        config: LanguageConfig,
        model: str | None,
        prompt: PromptConfig,
        *,
        seed: int,
        source: TextSource,
        adapters_dir: str | Path | None = None,
        device: str = "cpu",
        bad_batches_dir: Path | None = None,
    ) -> None:
        """`model` and `prompt` are prior.model and prior.prompt. Without `adapters_dir` adapters go
        to a temporary folder, which engines on this machine can read but a resumed run will not
        find.
        """
        torch.set_num_threads(1)
        folder = Path(adapters_dir or tempfile.mkdtemp(prefix="warpzone-adapters-"))
        self._learner = LanguageLearner(
            config,
            resolve_model(model),
            folder,
            seed=seed,
            prompt=prompt,
            device=device,
            bad_batches_dir=bad_batches_dir,
        )
        self._source = source

    def train(self, n_updates: int) -> LanguageReport:
        """See LanguageLearner.train; the controller hands report.adapter to the engines."""
        return self._learner.train(n_updates, self._source)

    def save(self, folder: str) -> None:
        self._learner.save(Path(folder))

    def load(self, folder: str) -> None:
        self._learner.load(Path(folder))

    def roll_back(self, folder: str | Path) -> Adapter | None:
        """See LanguageLearner.roll_back; the controller hands the adapter to the engines."""
        return self._learner.roll_back(Path(folder))

    def is_finite(self) -> bool:
        """Whether a checkpoint of the adapter would hold finite numbers only."""
        return self._learner.is_finite()

    def ping(self) -> int:
        """The process id; an answer means the model is loaded."""
        return os.getpid()
