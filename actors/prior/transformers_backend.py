"""The language model as a plain transformers module in this process.

The oracle of the tests, the backend of the serial runtime, and a way out where vLLM can't be
installed. It has no prefix cache and no batching over callers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from actors.prior.backend import BASE_VERSION, Health, PublishReport, ScoreBatch
from actors.prior.config import PriorConfig
from learner.language.adapter import AdapterCheck, holds_whole_model
from learner.language.prompt import ScoreRequest
from learner.language.scoring import answer_log_probs, load_causal_lm

_BARE = BASE_VERSION - 1  # no adapter at all, which BASE_VERSION may be


class TransformersBackend:
    """Scores on one device, one call at a time."""

    def __init__(self, config: PriorConfig, model_folder: Path, *, device: str = "cpu") -> None:
        dtype = config.dtype
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        self._base_folder = model_folder
        self._model, self._pad_id = load_causal_lm(model_folder, dtype, device)
        self._dtype, self._device = dtype, device
        self._tolerance = config.largest_gap(dtype)
        self._batch = config.max_concurrent
        self._version = _BARE
        self._n_scored = self._n_published = self._n_refused = 0

    def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        answers: list[np.ndarray] = []
        with torch.inference_mode(), self._base_only():
            for start in range(0, len(requests), self._batch):
                part = requests[start : start + self._batch]
                rows = answer_log_probs(self._model, part, self._pad_id)
                answers += [row.cpu().numpy() for row in rows]
        self._n_scored += len(requests)
        return ScoreBatch(tuple(answers), max(self._version, BASE_VERSION))

    def publish(self, version: int, path: str) -> PublishReport:
        """Loads and checks an adapter or a whole model; a wrong one is dropped and the one before
        stays.
        """
        if version == self._version:
            return PublishReport(version, True, float("nan"))
        model_before = self._model
        if version < self._version:
            return self._refuse(version, float("nan"), f"version {self._version} is serving")
        try:
            check = AdapterCheck.read(Path(path))
            is_whole = holds_whole_model(Path(path))
            if is_whole:
                self._model, _ = load_causal_lm(Path(path), self._dtype, self._device)
            else:
                self._load(version, path)
        except (ValueError, OSError, RuntimeError) as error:
            return self._refuse(version, float("nan"), str(error))
        before, self._version = self._version, version
        try:
            gap = check.gap(self.score(check.requests).log_probs)
            reason = f"log-probabilities differ by {gap:.3g} from the trainer's"
        except (IndexError, RuntimeError) as error:  # tokens that this model does not have
            gap, reason = np.inf, f"its check can't be scored: {error}"
        if gap > self._tolerance:
            self._version = before
            if is_whole:
                self._model = model_before
            else:
                self._drop(version)
            return self._refuse(version, gap, reason)
        self._drop(before)
        self._n_published += 1
        return PublishReport(version, True, gap)

    def withdraw(self, version: int) -> None:
        """The model as loaded serves again: versions before are not kept here."""
        if version != self._version:
            return
        self._version = _BARE
        if isinstance(self._model, PeftModel):
            self._drop(version)
        else:
            self._model, _ = load_causal_lm(self._base_folder, self._dtype, self._device)

    def health(self) -> Health:
        return Health(
            f"transformers pid {os.getpid()}",
            max(self._version, BASE_VERSION),
            self._n_scored,
            self._n_published,
            self._n_refused,
        )

    def close(self) -> None:
        """Nothing to end: the model goes with this object."""

    def _load(self, version: int, path: str) -> None:
        if isinstance(self._model, PeftModel):
            self._model.load_adapter(path, _name(version))
            self._model.set_adapter(_name(version))
        else:
            self._model = PeftModel.from_pretrained(self._model, path, _name(version)).eval()

    def _drop(self, version: int) -> None:
        """Forgets an adapter that does not serve; the last one of all stays loaded, disabled."""
        if not isinstance(self._model, PeftModel) or version == _BARE:
            return
        if self._version != _BARE:
            self._model.set_adapter(_name(self._version))
        if len(self._model.peft_config) > 1:
            self._model.delete_adapter(_name(version))

    def _base_only(self) -> object:
        if isinstance(self._model, PeftModel) and self._version == _BARE:
            return self._model.disable_adapter()
        return nullcontext()

    def _refuse(self, version: int, gap: float, reason: str) -> PublishReport:
        self._n_refused += 1
        return PublishReport(version, False, gap, reason)


def _name(version: int) -> str:
    return f"v{version}"
