"""Tunes the language model towards what search found, as a LoRA adapter.

Plain Python, one thread. What is learnt from a state is in `losses.py`: the visit shares of its
options, or what search found each of them worth.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from learner.bad_numbers import BadBatches, BadStep
from learner.language.adapter import (
    WARM_START_VERSION,
    Adapter,
    AdapterCheck,
    adapter_folder,
    load_weights,
    published_adapters,
    remove_old_adapters,
)
from learner.language.config import LanguageConfig
from learner.language.examples import Example, read_examples
from learner.language.language_report import LanguageReport
from learner.language.language_state import LanguageState, read_state, write_state
from learner.language.losses import language_losses, scaled_advantages
from learner.language.measurement import Measurement, measure
from learner.language.prompt import PromptBuilder, ScoreRequest
from learner.language.prompt_config import PromptConfig
from learner.language.reference import Reference
from learner.language.scoring import answer_log_probs, load_causal_lm
from replay_service.stage_times import add_seconds
from replay_service.targets import TextBatch

KEPT_BAD_BATCHES = 8


class TextSource(Protocol):
    """Where the learner takes its examples from."""

    def next(self) -> TextBatch | None:
        """Some examples, or None while replay holds no prompts."""


class LanguageLearner:
    """Owns the trainable model; publishes a new adapter folder every few updates."""

    def __init__(
        self,
        config: LanguageConfig,
        model_folder: Path,
        adapters_dir: Path,
        *,
        seed: int,
        prompt: PromptConfig | None = None,
        device: str = "cpu",
        bad_batches_dir: Path | None = None,
    ) -> None:
        """Starts from the warm start in `adapters_dir`, if there is one; new versions continue
        after those found there.

        bad_batches_dir: where batches go whose updates were not finite; None keeps none
        """
        self._config = config
        self._builder = PromptBuilder(model_folder, prompt or PromptConfig(), seed=seed)
        base, self._pad_id = load_causal_lm(model_folder, "float32", device)
        # The head and the embeddings stay frozen: vLLM takes no adapters of them here.
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,  # dropout would make old log-probabilities differ from new ones
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model = get_peft_model(base, lora).to(device)
        # Deterministic gradients need no train mode: there is no dropout to switch on.
        self._model.eval()
        self._trained = {n: p for n, p in self._model.named_parameters() if p.requires_grad}
        warm_start = adapter_folder(adapters_dir, WARM_START_VERSION)
        if warm_start.is_dir():
            load_weights(warm_start, self._trained)
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._reference = Reference(self._trained, self._log_probs)
        self._adapters_dir = adapters_dir
        published = published_adapters(adapters_dir)
        self._version = published[-1].version if published else 0
        self._rng = np.random.default_rng(seed)
        self._updates = 0
        self._published_at = 0
        self._check_requests: list[ScoreRequest] = []
        self._skipped = 0
        self._n_bad_in_a_row = 0
        self._bad_steps: list[BadStep] = []
        self._bad_batches = None
        if bad_batches_dir is not None:
            self._bad_batches = BadBatches(bad_batches_dir, KEPT_BAD_BATCHES, prefix="language-")

    @property
    def updates(self) -> int:
        """Batches consumed since the start of the run, skipped ones included."""
        return self._updates

    @property
    def version(self) -> int:
        """Version of the newest published adapter; 0 before the first."""
        return self._version

    def train(self, n_updates: int, source: TextSource) -> LanguageReport:
        """Up to `n_updates` optimiser steps; fewer, without error, while there are no examples.

        Nothing is published right after an update that was not finite.
        """
        seconds = {"sample_wait": 0.0, "compute": 0.0, "publish": 0.0}
        self._bad_steps = []
        sums: dict[str, float] = {}
        metrics: dict[str, float] = {}
        done = n_finite = 0
        for _ in range(n_updates):
            mark = time.perf_counter()
            batch = source.next()
            mark = add_seconds(seconds, "sample_wait", mark)
            if batch is None:
                break
            metrics = self.update(batch)
            if not self._n_bad_in_a_row:
                n_finite += 1
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value
            add_seconds(seconds, "compute", mark)
            done += 1
        mark = time.perf_counter()
        adapter = None
        is_due = self._updates - self._published_at >= self._config.publish_every
        if is_due and not self._n_bad_in_a_row:
            adapter = self.publish()
        add_seconds(seconds, "publish", mark)
        means = {name: value / n_finite for name, value in sums.items()} or metrics
        if done:
            means = {**means, "language_skipped_total": float(self._skipped)}
        return LanguageReport(
            done,
            self._updates,
            means,
            seconds,
            adapter,
            tuple(self._bad_steps),
            self._n_bad_in_a_row,
        )

    def update(self, batch: TextBatch) -> dict[str, float]:
        """One optimiser step; one whose log-probabilities, loss or gradient are not finite changes
        nothing, is counted, and its batch is kept.

        Raises RuntimeError when nothing was supervised: a language model that silently learns
        nothing looks healthy.
        """
        config = self._config
        found = read_examples(batch, self._builder, self._rng, config.loss)[: config.batch_size]
        examples = self._compared(found)
        if not examples:
            raise RuntimeError(
                f"none of {len(batch.prompt)} sampled states has a prompt, options and visit "
                "shares on them: the language model would train on nothing"
            )
        metrics: dict[str, float] = {}
        for _ in range(config.steps_per_batch):
            for name, value in self._step(examples, batch).items():
                metrics[name] = metrics.get(name, 0.0) + value / config.steps_per_batch
        return metrics

    def measure(self, batch: TextBatch) -> Measurement:
        """How well the model answers all states of `batch` now; nothing is learnt from them."""
        loss = replace(self._config.loss, name="sft")
        # The same labels each time, and none of the random numbers of learning.
        examples = read_examples(batch, self._builder, np.random.default_rng(0), loss)
        return measure(self._log_probs, examples, self._config.micro_batch_size, loss)

    def _step(self, examples: Sequence[Example], batch: TextBatch) -> dict[str, float]:
        self._optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {"loss": 0.0}
        largest = 0.0  # NaN stays in it
        size = self._config.micro_batch_size
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            log_probs = self._log_probs([e.prompt.request for e in part])
            lessons = [e.lesson.to(log_probs[0].device) for e in part]
            loss, more = language_losses(log_probs, lessons, self._config.loss)
            # Divided by what is really there, not by the configured batch size.
            (loss / len(examples)).backward()
            for name, value in {"loss": float(loss.detach()), **more}.items():
                sums[name] = sums.get(name, 0.0) + value
            largest += float(torch.cat(log_probs).detach().abs().amax())
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._config.grad_clip)
        checks = {"log_probs": largest, "loss": sums["loss"], "gradient": float(norm)}
        not_finite = tuple(name for name, value in checks.items() if not np.isfinite(value))
        if not_finite:
            self._skip(batch, not_finite, checks)
        else:
            self._optimizer.step()
            self._n_bad_in_a_row = 0
            self._check_requests = [
                replace(e.prompt.request, thought=None)
                for e in examples[: self._config.n_check_prompts]
            ]
        self._updates += 1
        metrics = {f"language_{name}": value / len(examples) for name, value in sums.items()}
        metrics["language_grad_norm"] = float(norm)
        metrics["language_supervised"] = float(len(examples))
        return metrics

    def _skip(
        self, batch: TextBatch, not_finite: tuple[str, ...], checks: dict[str, float]
    ) -> None:
        file = ""
        # Those after it in a row meet the same weights, and would push the first one's file out.
        if self._bad_batches is not None and not self._n_bad_in_a_row:
            file = self._bad_batches.save_text(
                batch, update=self._updates, version=self._version, numbers=checks
            )
        self._bad_steps.append(BadStep(self._updates, not_finite, file))
        self._n_bad_in_a_row += 1
        self._skipped += 1

    def publish(self) -> Adapter | None:
        """Writes the adapter, or the model it makes, under the next version, with the answers that
        an engine must reproduce.

        None, and nothing is written, if the adapter or these answers are not finite.
        """
        if not self._check_requests:
            raise RuntimeError("nothing to publish: the language learner has not trained yet")
        with torch.no_grad():
            rows = [row.cpu().numpy() for row in self._log_probs(self._check_requests)]
        if not self.is_finite() or not all(np.isfinite(row).all() for row in rows):
            return None
        version = self._version + 1
        folder = adapter_folder(self._adapters_dir, version)
        self._adapters_dir.mkdir(parents=True, exist_ok=True)
        check = AdapterCheck(tuple(self._check_requests), tuple(rows))
        with tempfile.TemporaryDirectory(dir=self._adapters_dir, prefix=".new-") as work:
            written = Path(work) / "adapter"
            model = self._model
            if self._config.publish == "full":
                model = copy.deepcopy(model).merge_and_unload()
            model.save_pretrained(written)
            check.write(written)
            written.rename(folder)
        remove_old_adapters(self._adapters_dir)
        assert version > self._version, (version, self._version)
        self._version = version
        self._published_at = self._updates
        return Adapter(version, str(folder))

    def save(self, folder: Path) -> None:
        """Adapter, optimizer, counters and random state; safetensors and JSON."""
        state = LanguageState(
            self._version,
            self._updates,
            self._published_at,
            self._rng.bit_generator.state,
            self._skipped,
        )
        write_state(folder, state, self._trained, self._optimizer)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. Versions still never go back. Raises ValueError."""
        state = read_state(folder, self._trained, self._optimizer)
        # Versions published after the checkpoint may be serving: go on after those.
        self._version = max(self._version, state.version)
        self._updates = state.updates
        self._published_at = state.published_at
        self._rng.bit_generator.state = state.rng
        self._skipped = state.skipped
        self._n_bad_in_a_row = 0

    def roll_back(self, folder: Path) -> Adapter | None:
        """`load`, but updates skipped since stay counted; publishes what was restored.

        None if nothing was trained in this process yet, so that there is no answer to check.
        """
        n_skipped = self._skipped
        self.load(folder)
        self._skipped = n_skipped
        return self.publish() if self._check_requests else None

    def is_finite(self) -> bool:
        """Whether all that `save` writes is free of NaN and infinity; waits for the device."""
        moments = [v for state in self._optimizer.state.values() for v in state.values()]
        return all(bool(torch.isfinite(t).all()) for t in [*self._trained.values(), *moments])

    def _log_probs(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        return answer_log_probs(self._model, requests, self._pad_id)

    @torch.no_grad()
    def _compared(self, examples: list[Example]) -> list[Example]:
        """With advantages in scales of this batch, and log q of the reference and of now."""
        if not examples or self._config.loss.name == "sft":
            return examples
        requests = [e.prompt.request for e in examples]
        scaled = scaled_advantages([e.lesson.advantage for e in examples])
        references = self._reference.log_q(requests)
        old: list[Tensor | None] = [None] * len(examples)
        if self._config.loss.name == "ppo":
            old = [scores.log_softmax(0) for scores in self._log_probs(requests)]
        return [
            replace(
                e,
                lesson=replace(
                    e.lesson,
                    advantage=advantage.to(reference),
                    reference=reference,
                    old=before,
                ),
            )
            for e, advantage, reference, before in zip(
                examples, scaled, references, old, strict=True
            )
        ]
