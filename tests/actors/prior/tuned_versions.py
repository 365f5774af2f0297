"""Versions that a real language learner has published, for engines to take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from learner.language.adapter import Adapter
from learner.language.config import LanguageConfig
from learner.language.language_learner import LanguageLearner
from replay_service.targets import TextBatch

RANK = 8


def tuned_versions(folder: Path, out: Path, n_versions: int, **settings: object) -> list[Adapter]:
    """Published versions that each move scores a lot."""
    torch.set_num_threads(1)
    config = LanguageConfig(
        batch_size=4,
        micro_batch_size=4,
        learning_rate=3e-2,
        publish_every=2,
        lora_rank=RANK,
        **settings,
    )
    learner = LanguageLearner(config, folder, out, seed=0)
    policy = torch.tensor([[0.9, 0.1, 0.0]]).repeat(4, 1)
    options = (("jump", "wait", "run right"),) * 4

    class Source:
        def next(self) -> TextBatch:
            return TextBatch(tuple("abcd"), options, policy, torch.zeros(4, dtype=torch.int64))

    published = [learner.train(2, Source()).adapter for _ in range(n_versions)]
    assert None not in published
    return published


def tampered(adapter: Adapter, folder: Path) -> Path:
    """A copy whose check says something else than its weights."""
    copy = folder / Path(adapter.path).name
    shutil.copytree(adapter.path, copy)
    content = json.loads((copy / "check.json").read_text())
    content["log_probs"] = [[value - 0.5 for value in row] for row in content["log_probs"]]
    (copy / "check.json").write_text(json.dumps(content))
    return copy
