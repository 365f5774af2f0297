"""Fine-tunes a language model on demonstrations, before a run: a warm start.

The learner, its loss and its prompts are those of a run; only the examples come from elsewhere.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from learner.language.config import LanguageConfig
from learner.language.examples import usable_rows
from learner.language.language_learner import LanguageLearner
from learner.language.measurement import Measurement
from learner.language.prompt_config import PromptConfig
from learner.language.warm_start import WarmStart, model_fingerprint
from replay_service.targets import TextBatch

STEPS_PER_CALL = 25  # optimiser steps between two reports
NEVER = 2**31  # the adapter is published once, at the end


@dataclass(frozen=True, slots=True)
class PretrainReport:
    """What came of it.

    n_steps:       optimiser steps
    before, after: of the states that were trained on, and of those held out
    """

    n_steps: int
    before: Measurement
    after: Measurement
    held_out_before: Measurement
    held_out_after: Measurement


class ShuffledDemonstrations:
    """All demonstrations once, in an order of its own each time, in batches."""

    def __init__(self, demonstrations: TextBatch, batch_size: int, seed: int) -> None:
        self._all = demonstrations
        self._batch_size = batch_size
        self._rng = np.random.default_rng(seed)
        self._left: list[int] = []

    def next(self) -> TextBatch:
        if not self._left:
            self._left = self._rng.permutation(len(self._all.prompt)).tolist()
        taken, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        return select(self._all, np.array(taken))


def select(batch: TextBatch, rows: NDArray[np.int64]) -> TextBatch:
    """Some rows of a batch; advantages are left out."""
    index = torch.as_tensor(rows)
    return TextBatch(
        tuple(batch.prompt[row] for row in rows),
        tuple(batch.options[row] for row in rows),
        batch.policy[index],
        batch.action[index],
    )


def split(batch: TextBatch, share: float, seed: int) -> tuple[TextBatch, TextBatch]:
    """What to train on, and `share` of the different states, at least one, to hold out.

    A state that was met twice is on one side only. ValueError for fewer than two states.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(batch.prompt))}
    if len(numbers) < 2:
        raise ValueError(
            f"the {len(batch.prompt)} demonstrations show {len(numbers)} different states, at "
            "least 2 are needed, one of them to be held out; give more games or episodes"
        )
    n_held_out = min(max(round(share * len(numbers)), 1), len(numbers) - 1)
    chosen = np.random.default_rng(seed).permutation(len(numbers))[:n_held_out]
    is_held_out = np.isin([numbers[text] for text in batch.prompt], chosen)
    train, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    return select(batch, train), select(batch, held_out)


def pretrain(
    demonstrations: TextBatch,
    model: Path,
    output: Path,
    *,
    config: LanguageConfig,
    prompt: PromptConfig,
    n_steps: int,
    held_out_share: float,
    seed: int,
    source: str,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> PretrainReport:
    """Writes an adapter of `model` into the new folder `output`, for `prior.adapter`.

    config: of the learner; its loss must be sft, since demonstrations have no advantages
    source: where the demonstrations come from, for people
    progress: is told steps done and the mean loss of the newest

    Raises ValueError if nothing can be supervised, and RuntimeError if numbers stop being finite;
    nothing is written then.
    """
    if config.loss.name != "sft":
        raise ValueError(
            f"language.loss.name={config.loss.name} needs advantages, which demonstrations do not "
            "have; use sft"
        )
    config = replace(config, publish_every=NEVER, publish="adapter")
    train, held_out = split(_usable(demonstrations), held_out_share, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as work:
        learner = LanguageLearner(config, model, Path(work), seed=seed, prompt=prompt)
        before, held_out_before = learner.measure(train), learner.measure(held_out)
        assert before.tokens > 0 and held_out_before.tokens > 0, (before, held_out_before)
        _train(learner, train, config.batch_size, n_steps, seed, progress)
        adapter = learner.publish()
        if adapter is None:
            raise RuntimeError("the adapter is not finite; lower language.learning_rate")
        report = PretrainReport(
            learner.updates,
            before,
            learner.measure(train),
            held_out_before,
            learner.measure(held_out),
        )
        about = WarmStart(
            model_fingerprint(model),
            config.lora_rank,
            config.lora_alpha,
            asdict(prompt),
            source,
            _figures(report),
        )
        about.write(Path(adapter.path))
        Path(adapter.path).rename(output)
    return report


def _usable(demonstrations: TextBatch) -> TextBatch:
    rows = usable_rows(demonstrations)
    if not rows:
        raise ValueError(
            f"0 supervised tokens: none of {len(demonstrations.prompt)} demonstrations has a "
            "state, at least two options, and an answer among them"
        )
    return select(demonstrations, np.array(rows))


def _train(
    learner: LanguageLearner,
    demonstrations: TextBatch,
    batch_size: int,
    n_steps: int,
    seed: int,
    progress: Callable[[int, float], None],
) -> None:
    source = ShuffledDemonstrations(demonstrations, batch_size, seed)
    while learner.updates < n_steps:
        report = learner.train(min(STEPS_PER_CALL, n_steps - learner.updates), source)
        if report.bad_steps:
            step = report.bad_steps[0]
            raise RuntimeError(
                f"optimiser step {step.update} was not finite ({', '.join(step.not_finite)}); "
                "lower language.learning_rate or language.grad_clip"
            )
        progress(learner.updates, report.metrics["language_loss"])


def _figures(report: PretrainReport) -> dict[str, float]:
    parts = ("before", "after", "held_out_before", "held_out_after")
    figures = {
        f"{part}_{name}": value
        for part in parts
        for name, value in asdict(getattr(report, part)).items()
    }
    return {"n_steps": report.n_steps, **figures}
