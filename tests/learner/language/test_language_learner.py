"""Tuning: the loss against a hand computation, learning on a toy set, what it refuses, resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.language.adapter import AdapterCheck, published_adapters
from learner.language.config import LanguageConfig
from learner.language.language_learner import LanguageLearner
from learner.language.language_learner_actor import LanguageLearnerActor, RayTextSource
from learner.language.losses import Lesson, LossConfig, language_losses
from learner.language.prompt_config import PromptConfig
from replay_service.targets import TextBatch

OPTIONS = ("wait", "walk right", "run right", "jump")
STATES = ("pit 3 ahead width 2", "nothing ahead", "goomba +2.0,+0.0 moving left")
BEST = (3, 2, 3)
PROMPT = PromptConfig(shuffle=False)
FAST = LanguageConfig(batch_size=6, micro_batch_size=6, learning_rate=5e-3, publish_every=100)


class ToySource:
    """Each state with a policy that mostly takes its best action."""

    def __init__(self, seed: int = 0, n_states: int = 6) -> None:
        self._rng = np.random.default_rng(seed)
        self._n_states = n_states

    def next(self) -> TextBatch:
        picked = self._rng.integers(0, len(STATES), self._n_states)
        policy = np.full((len(picked), 4), 0.05, np.float32)
        policy[np.arange(len(picked)), [BEST[i] for i in picked]] = 0.85
        best = torch.tensor([BEST[i] for i in picked])
        advantage = torch.full((len(picked), 4), -0.5)
        advantage[torch.arange(len(picked)), best] = 1.5
        states = tuple(STATES[i] for i in picked)
        played = torch.tensor(self._rng.integers(0, 4, len(picked)))
        return TextBatch(states, (OPTIONS,) * len(picked), torch.tensor(policy), played, advantage)


class Empty:
    def next(self) -> None:
        return None


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_learner(folder: Path, out: Path, config: LanguageConfig = FAST) -> LanguageLearner:
    return LanguageLearner(config, folder, out, seed=1, prompt=PROMPT)


def parameters(learner: LanguageLearner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner._trained.items()}


def test_loss_by_hand() -> None:
    scores = torch.tensor([0.1, 0.3]).log()  # 0.4 of the vocabulary's probability is on labels
    target = torch.tensor([0.5, 0.5])
    loss, sums = language_losses([scores], [Lesson(target)], LossConfig(mass_weight=0.1))
    cross_entropy = -0.5 * (math.log(0.25) + math.log(0.75))
    assert loss.item() == pytest.approx(cross_entropy - 0.1 * math.log(0.4), abs=1e-6)
    assert sums["kl"] == pytest.approx(cross_entropy - math.log(2), abs=1e-6)
    assert sums["label_mass"] == pytest.approx(0.4)
    plain, _ = language_losses([scores], [Lesson(target)], LossConfig(mass_weight=1.0))
    assert plain.item() == pytest.approx(-(target * scores).sum().item(), abs=1e-6)


def test_learns_what_search_prefers(tiny_llm: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_llm, tmp_path)
    first = learner.train(5, ToySource())
    middle = learner.train(40, ToySource(1))
    last = learner.train(5, ToySource(2))
    assert last.metrics["language_loss"] < first.metrics["language_loss"] < 20
    assert last.metrics["language_kl"] < 0.5 * first.metrics["language_kl"]
    assert middle.n_updates == 40 and last.updates == learner.updates == 50
    assert last.metrics["language_supervised"] == 6


def test_small_forward_passes_give_the_same_step(tiny_llm: Path, tmp_path: Path) -> None:
    """Five examples in passes of two: the gradient is divided by five."""
    batch = ToySource(n_states=5).next()
    whole = make_learner(tiny_llm, tmp_path)
    parts = make_learner(tiny_llm, tmp_path, LanguageConfig(batch_size=6, micro_batch_size=2))
    assert whole.update(batch)["language_grad_norm"] == pytest.approx(
        parts.update(batch)["language_grad_norm"], rel=1e-4
    )


def test_no_examples_yet_is_no_error(tiny_llm: Path, tmp_path: Path) -> None:
    report = make_learner(tiny_llm, tmp_path).train(3, Empty())
    assert report.n_updates == 0 and report.metrics == {} and report.adapter is None


@pytest.mark.parametrize("case", ["zero policy", "no prompt", "nan policy", "one option"])
def test_training_on_nothing_is_an_error(tiny_llm: Path, tmp_path: Path, case: str) -> None:
    policy, action = torch.full((1, 4), 0.25), torch.tensor([1])
    batch = {
        "zero policy": TextBatch(("state",), (OPTIONS,), policy * 0, action),
        "no prompt": TextBatch(("",), (OPTIONS,), policy, action),
        "nan policy": TextBatch(("state",), (OPTIONS,), policy * math.nan, action),
        "one option": TextBatch(("state",), (("", "jump", "", ""),), policy, action),
    }[case]
    with pytest.raises(RuntimeError, match="would train on nothing"):
        make_learner(tiny_llm, tmp_path).update(batch)


@pytest.mark.parametrize(("name", "steps"), [("rft", 1), ("awr", 1), ("ppo", 3)])
def test_follows_what_search_found_an_action_worth(
    tiny_llm: Path, tmp_path: Path, name: str, steps: int
) -> None:
    config = replace(FAST, loss=LossConfig(name=name, kl_weight=0.01), steps_per_batch=steps)
    learner = make_learner(tiny_llm, tmp_path, config)
    before = probability_of_best(learner)
    report = learner.train(40 // steps, ToySource())
    assert (probability_of_best(learner) > before + 0.1).all(), probability_of_best(learner)
    assert report.updates == 40 // steps * steps
    assert report.metrics["language_kl_reference"] > 0.01


def probability_of_best(learner: LanguageLearner) -> np.ndarray:
    requests = [learner._builder.build(state, OPTIONS).request for state in STATES]
    with torch.no_grad():
        rows = learner._log_probs(requests)
    return np.array([float(r.softmax(0)[b]) for r, b in zip(rows, BEST, strict=True)])


def test_the_reference_is_the_model_as_loaded_and_read_once(tiny_llm: Path, tmp_path: Path) -> None:
    config = replace(FAST, loss=LossConfig(name="rft"))
    learner = make_learner(tiny_llm, tmp_path, config)
    requests = [learner._builder.build(state, OPTIONS).request for state in STATES]
    with torch.no_grad():
        loaded = [row.log_softmax(0) for row in learner._log_probs(requests)]
    learner.train(5, ToySource())
    trained = parameters(learner)
    for ours, theirs in zip(learner._reference.log_q(requests), loaded, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert all(torch.equal(p, trained[name]) for name, p in parameters(learner).items())
    again = learner._reference.log_q(requests)
    assert all(ours is theirs for ours, theirs in zip(again, again, strict=True))


def test_a_loss_without_its_advantages_is_an_error_and_not_zero(
    tiny_llm: Path, tmp_path: Path
) -> None:
    """The ancestors' bug: examples of another form were passed over, and the loss was 0."""
    learner = make_learner(tiny_llm, tmp_path, replace(FAST, loss=LossConfig(name="rft")))
    batch = replace(ToySource().next(), advantage=None)
    with pytest.raises(RuntimeError, match=r"set replay\.advantages to true, or use sft"):
        learner.update(batch)
    assert learner.updates == 0


def test_publishes_complete_folders_and_keeps_three(tiny_llm: Path, tmp_path: Path) -> None:
    config = LanguageConfig(batch_size=4, micro_batch_size=4, publish_every=1)
    learner = make_learner(tiny_llm, tmp_path, config)
    adapters = [learner.train(1, ToySource(i)).adapter for i in range(4)]
    assert [a.version for a in adapters if a is not None] == [1, 2, 3, 4]
    assert [a.version for a in published_adapters(tmp_path)] == [2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 3  # no temporary folder is left
    newest = Path(published_adapters(tmp_path)[-1].path)
    check = AdapterCheck.read(newest)
    assert len(check.log_probs) == 4 and check.gap(check.log_probs) == 0.0
    assert (newest / "adapter_model.safetensors").is_file()
    # A new learner in the same run never publishes a version again.
    assert make_learner(tiny_llm, tmp_path, config).version == 4


def test_publishing_before_training_is_an_error(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has not trained yet"):
        make_learner(tiny_llm, tmp_path).publish()


def test_resumes_exactly(tiny_llm: Path, tmp_path: Path) -> None:
    config = LanguageConfig(batch_size=4, micro_batch_size=4, publish_every=2)
    straight = make_learner(tiny_llm, tmp_path / "a", config)
    straight.train(2, ToySource(0))
    straight.save(tmp_path / "checkpoint")
    resumed = make_learner(tiny_llm, tmp_path / "b", config)
    resumed.load(tmp_path / "checkpoint")
    assert (resumed.updates, resumed.version) == (2, 1)
    reports = [learner.train(2, ToySource(1)) for learner in (straight, resumed)]
    assert reports[0].metrics == reports[1].metrics
    assert reports[1].adapter is not None and reports[1].adapter.version == 2
    theirs = parameters(resumed)
    assert all(torch.equal(value, theirs[name]) for name, value in parameters(straight).items())


def test_another_ranks_checkpoint_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_llm, tmp_path)
    learner.update(ToySource().next())
    learner.save(tmp_path / "checkpoint")
    other = make_learner(tiny_llm, tmp_path, LanguageConfig(lora_rank=4))
    with pytest.raises(ValueError, match=r"keep prior\.model and language\.lora_rank"):
        other.load(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"micro_batch_size": 64}, "micro_batch_size must be at most batch_size=32, got 64"),
    ],
)
def test_bad_settings(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageConfig(**changes)


def test_the_process_shell_runs_without_ray(tiny_llm: Path, tmp_path: Path) -> None:
    config = LanguageConfig(batch_size=4, micro_batch_size=4, publish_every=2)
    actor = LanguageLearnerActor(
        config,
        str(tiny_llm),
        PROMPT,
        seed=0,
        source=ToySource(),
        adapters_dir=tmp_path / "adapters",
    )
    report = actor.train(2)
    assert report.n_updates == 2 and report.adapter is not None and actor.ping() > 0
    actor.save(str(tmp_path / "checkpoint"))
    actor.load(str(tmp_path / "checkpoint"))
    assert actor.train(1).updates == 3


def test_examples_come_from_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source asks replay once a batch, with a time limit."""
    asked: list[int] = []

    class Remote:
        def remote(self, batch_size: int) -> str:
            asked.append(batch_size)
            return "ref"

    class Replay:
        sample_text = Remote()

    batch = ToySource().next()
    monkeypatch.setattr("ray.get", lambda ref, timeout: batch)
    assert RayTextSource(Replay(), 16).next() is batch
    assert asked == [16]
