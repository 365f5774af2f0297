"""The language learner beside NaN and infinity: skipped, counted, kept, undone; never published."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.language.adapter import published_adapters
from learner.language.config import LanguageConfig
from learner.language.language_learner import KEPT_BAD_BATCHES, LanguageLearner
from learner.language.prompt_config import PromptConfig
from replay_service.targets import TextBatch

OPTIONS = ("wait", "walk right", "run right", "jump")
CONFIG = LanguageConfig(batch_size=4, micro_batch_size=2, publish_every=1)
PROMPT = PromptConfig(shuffle=False)


class Source:
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def next(self) -> TextBatch:
        policy = self._rng.dirichlet(np.ones(4), 4).astype(np.float32)
        states = tuple(f"pit {n} ahead" for n in self._rng.integers(0, 9, 4))
        return TextBatch(states, (OPTIONS,) * 4, torch.tensor(policy), torch.zeros(4).long())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def learner(tiny_llm: Path, tmp_path: Path) -> LanguageLearner:
    return LanguageLearner(
        CONFIG,
        tiny_llm,
        tmp_path / "adapters",
        seed=1,
        prompt=PROMPT,
        bad_batches_dir=tmp_path / "bad",
    )


def state(learner: LanguageLearner) -> list[torch.Tensor]:
    states = learner._optimizer.state.values()
    moments = [state[name] for state in states for name in sorted(state)]
    return [t.detach().clone() for t in [*learner._trained.values(), *moments]]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def spoil(learner: LanguageLearner, value: float = math.nan) -> None:
    for parameter in learner._trained.values():
        parameter.data.fill_(value)


def in_the_weights(learner: LanguageLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    next(iter(learner._trained.values())).data[0, 0] = math.nan


def in_the_gradient(learner: LanguageLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = next(iter(learner._trained.values()))
    parameter.register_hook(lambda gradient: gradient * math.inf)


def in_the_answers(learner: LanguageLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LanguageLearner._log_probs
    monkeypatch.setattr(
        LanguageLearner,
        "_log_probs",
        lambda self, prompts: [row + math.inf for row in real(self, prompts)],
    )


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (in_the_weights, {"log_probs", "loss", "gradient"}),
        (in_the_gradient, {"gradient"}),
        (in_the_answers, {"log_probs", "loss", "gradient"}),
    ],
)
def test_an_update_that_is_not_finite_changes_nothing(
    learner: LanguageLearner, monkeypatch: pytest.MonkeyPatch, break_it: Callable, named: set[str]
) -> None:
    learner.train(2, Source())
    version = learner.version
    break_it(learner, monkeypatch)
    before = state(learner)
    report = learner.train(3, Source())
    assert all(
        torch.equal(a, b) or torch.isnan(a).any()
        for a, b in zip(before, state(learner), strict=True)
    )
    assert report.n_bad_in_a_row == 3 and report.n_updates == 3 and report.updates == 5
    assert [step.update for step in report.bad_steps] == [2, 3, 4]
    assert set(report.bad_steps[0].not_finite) == named
    assert report.metrics["language_skipped_total"] == 3
    assert report.adapter is None and learner.version == version
    assert [bool(step.file) for step in report.bad_steps] == [True, False, False]
    with np.load(report.bad_steps[0].file, allow_pickle=False) as saved:
        assert saved["prompt"].shape == (4,) and saved["options"].shape == (4, 4)
        assert np.isfinite(saved["policy"]).all() and saved["version"] == version
        assert not np.isfinite(saved["measured_gradient"])


def test_one_bad_update_does_not_colour_the_figures_of_the_others(
    learner: LanguageLearner,
) -> None:
    parameter = next(iter(learner._trained.values()))
    left = [True]

    def once(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * (math.nan if left and left.pop() else 1.0)

    parameter.register_hook(once)
    report = learner.train(4, Source())
    assert len(report.bad_steps) == 1 and report.n_bad_in_a_row == 0
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert report.metrics["language_grad_norm"] > 0
    assert report.adapter is not None


def test_an_adapter_that_is_not_finite_is_never_published(
    learner: LanguageLearner, tmp_path: Path
) -> None:
    learner.train(1, Source())
    assert learner.publish() is not None
    n_published = len(published_adapters(tmp_path / "adapters"))
    spoil(learner)
    assert not learner.is_finite()
    assert learner.publish() is None
    spoil(learner, 1e30)  # finite weights whose answers are not
    assert learner.is_finite()
    assert learner.publish() is None
    assert len(published_adapters(tmp_path / "adapters")) == n_published


def test_going_back_restores_the_checkpoint_bit_for_bit_and_publishes_it(
    learner: LanguageLearner, tmp_path: Path
) -> None:
    learner.train(2, Source())
    learner.save(tmp_path / "checkpoint")
    saved, version = state(learner), learner.version
    learner.train(1, Source())
    spoil(learner)
    learner.train(2, Source())
    adapter = learner.roll_back(tmp_path / "checkpoint")
    assert same(saved, state(learner))
    assert adapter is not None and adapter.version == learner.version > version + 1
    tensors = load_file(Path(adapter.path) / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())
    report = learner.train(1, Source())
    assert report.updates == 3 and not report.bad_steps
    assert report.metrics["language_skipped_total"] == 2


def test_going_back_to_before_the_first_update_forgets_the_moments(
    learner: LanguageLearner, tmp_path: Path
) -> None:
    learner.save(tmp_path / "checkpoint")
    saved = state(learner)
    learner.train(1, Source())
    for moments in learner._optimizer.state.values():
        moments["exp_avg"].fill_(math.nan)
    assert not learner.is_finite()
    learner.roll_back(tmp_path / "checkpoint")
    assert same(saved, state(learner)) and learner.is_finite()


def test_the_newest_bad_batches_are_kept(
    learner: LanguageLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "bad" / "version-0000000001-update-0000000001.npz"  # the world model's
    other.parent.mkdir()
    other.write_bytes(b"")
    parameter = next(iter(learner._trained.values()))
    turn = iter(range(1000))
    parameter.register_hook(lambda g: g * (math.nan if next(turn) % 4 < 2 else 1.0))
    report = learner.train(2 * KEPT_BAD_BATCHES + 4, Source())
    assert len(report.bad_steps) > KEPT_BAD_BATCHES
    kept = sorted(p.name for p in (tmp_path / "bad").glob("language-*.npz"))
    assert len(kept) == KEPT_BAD_BATCHES and other.exists()
    assert kept[-1] == Path(report.bad_steps[-1].file).name


@pytest.mark.parametrize("kind", ["parameter", "exp_avg", "exp_avg_sq"])
def test_a_checkpoint_that_is_not_finite_is_refused_whole(
    learner: LanguageLearner, tmp_path: Path, kind: str
) -> None:
    learner.train(1, Source())
    folder = tmp_path / "checkpoint"
    learner.save(folder)
    tensors = load_file(folder / "language.safetensors")
    name = sorted(key for key in tensors if key.startswith(f"{kind}/"))[-1]
    tensors[name] = tensors[name] * math.nan
    save_file(tensors, folder / "language.safetensors")
    learner.train(1, Source())
    before = state(learner)
    with pytest.raises(ValueError, match=f"{kind}/.* holds NaN or infinity"):
        learner.load(folder)
    assert same(before, state(learner))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": -1}, "version must be a whole number"),
        ({"updates": 1.5}, "updates must be a whole number"),
        ({"rng": {"bit_generator": "PCG64"}}, "rng is no state"),
        ({"rng": []}, "rng is no state"),
        ({"schema_version": 9}, "schema_version must be 1"),
        ({"extra": 0}, "missing or unknown: extra"),
    ],
)
def test_damaged_counters_are_named(
    learner: LanguageLearner, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    learner.save(folder)
    path = folder / "language.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        learner.load(folder)


def test_checkpoints_from_before_skips_were_counted_are_read(
    learner: LanguageLearner, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    learner.save(folder)
    content = json.loads((folder / "language.json").read_text())
    del content["skipped"]
    (folder / "language.json").write_text(json.dumps(content))
    learner._skipped = 3
    learner.load(folder)
    again = tmp_path / "again"
    learner.save(again)
    assert json.loads((again / "language.json").read_text()) == content | {"skipped": 0}
