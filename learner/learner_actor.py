"""The process shell of the learner; the controller calls one method at a time."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from learner.bad_numbers import BadBatches
from learner.config import LearnerConfig
from learner.learner import Learner, TrainReport
from learner.partial_restore import FileMatch
from learner.weights import NO_VERSION, WeightSink
from learner.world_model.config import WorldModelConfig
from replay_service.batch_source import BatchSource
from replay_service.segment import GameSpec
from replay_service.targets import TargetConfig


class LearnerActor:
    """Owns the learner; batches come from `source`, weights go to `sink`."""

    def __init__(
        self,
        *,
        config: LearnerConfig,
        model_config: WorldModelConfig,
        targets: TargetConfig,
        spec: GameSpec,
        device: str,
        seed: int,
        source: BatchSource,
        sink: WeightSink,
        bad_batches_dir: Path | None = None,
    ) -> None:
        torch.set_num_threads(1)
        self._source = source
        self._sink = sink
        bad_batches = None
        if bad_batches_dir is not None:
            bad_batches = BadBatches(bad_batches_dir, config.keep_bad_batches)
        self._learner = Learner(config, model_config, targets, spec, device, seed, bad_batches)

    def train(self, n_updates: int, learning_rate_scale: float = 1.0) -> TrainReport:
        """Run `n_updates` updates and publish on the way."""
        return self._learner.train(
            n_updates, self._source, self._sink, learning_rate_scale=learning_rate_scale
        )

    def publish(self, acted: int = NO_VERSION) -> int:
        """Push the weights now, as a version newer than any published; returns that version.

        For the start of a run, after a restore, and when a restarted weight server is empty: it
        does not remember which versions acted, so the caller says the newest that did.
        """
        self._learner.advance_version(max(acted, self._sink.published_version()))
        weights = self._learner.weights()
        self._sink.push(weights)
        return weights.version

    def weights_version(self) -> int:
        """Version that the next publication would carry now."""
        return self._learner.version

    def save(self, folder: Path) -> None:
        self._learner.save(Path(folder))

    def load(self, folder: Path) -> None:
        """Restore a saved learner; its versions go on above what has been published."""
        self._learner.load(Path(folder))
        self._learner.advance_version(self._sink.published_version())

    def load_matching(self, folder: Path) -> dict[str, FileMatch]:
        """As `load`, but takes over what fits and says what did not, by file name."""
        matches = self._learner.load_matching(Path(folder))
        self._learner.advance_version(self._sink.published_version())
        return matches

    def roll_back(self, folder: Path, acted: int = NO_VERSION) -> int:
        """Restore what was saved below `folder` and publish it, as the newest version of all.

        acted: newest version that acted, which a restarted weight server does not remember.
        Returns the version.
        """
        self._learner.roll_back(Path(folder))
        return self.publish(acted)

    def is_finite(self) -> bool:
        """Whether a checkpoint of the learner would hold finite numbers only."""
        return self._learner.is_finite()

    def ping(self) -> int:
        """The process id; an answer means the constructor has finished."""
        return os.getpid()
