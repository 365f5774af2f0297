"""Whole models put into a running vLLM engine: tied and untied heads, wrong and broken ones."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from actors.prior.backend import ScoreRequest
from actors.prior.config import PriorConfig
from actors.prior.transformers_backend import TransformersBackend
from learner.language.adapter import Adapter, AdapterCheck
from learner.language.prompt import PromptBuilder
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm, mario_line
from tests.actors.prior.conftest import EngineStarter
from tests.actors.prior.tuned_versions import tampered, tuned_versions

OPTIONS = tuple(f"option {i}" for i in range(12))


@dataclass(frozen=True)
class Reloading:
    """An engine that takes whole models, the oracle beside it, and models for both."""

    actor: ray.actor.ActorHandle
    oracle: TransformersBackend
    folder: Path
    models: list[Adapter]

    def score(self, requests: list[ScoreRequest]):
        return ray.get(self.actor.score.remote(requests))

    def publish(self, version: int, path: str | Path):
        return ray.get(self.actor.publish.remote(version, str(path)))

    def requests(self, seed: int) -> list[ScoreRequest]:
        rng = np.random.default_rng(seed)
        builder = PromptBuilder(self.folder, PriorConfig().prompt, seed=seed)
        return [builder.build(mario_line(rng), OPTIONS).request for _ in range(12)]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def reloading(
    request: pytest.FixtureRequest,
    start_engine: EngineStarter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reloading:
    recipe = TinyRecipe(weight_scale=4.0, n_corpus_lines=300, tie_embeddings=request.param)
    folder = ensure_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny", recipe)
    config = PriorConfig(model=str(folder), deadline_s=60.0, kv_cache_mb=64)
    models = tuned_versions(folder, tmp_path_factory.mktemp("models"), 3, publish="full")
    actor = start_engine(config)
    ray.get(actor.start.remote(), timeout=300)
    return Reloading(actor, TransformersBackend(config, folder), folder, models)


def gap(ours, theirs) -> float:
    pairs = zip(ours.log_probs, theirs.log_probs, strict=True)
    return max(float(np.abs(mine - other).max()) for mine, other in pairs)


def changed_copy(model: Adapter, folder: Path, change) -> Path:
    """A copy of a published model with `change` applied to its tensors."""
    copy = folder / "changed"
    shutil.copytree(model.path, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_scores_are_those_of_the_new_weights(reloading: Reloading) -> None:
    requests = reloading.requests(0)
    before = reloading.score(requests)
    assert before.version == 0 and gap(before, reloading.oracle.score(requests)) < 1e-4
    for model in reloading.models[:2]:
        report = reloading.publish(model.version, model.path)
        assert report.accepted and report.max_gap < 1e-3, report
        assert reloading.oracle.publish(model.version, model.path).accepted
        after = reloading.score(requests)
        assert after.version == model.version
        assert gap(after, reloading.oracle.score(requests)) < 1e-4
        assert gap(after, before) > 0.1
        before = after


def test_a_head_that_shares_changed_embeddings_is_changed_too(
    reloading: Reloading, tmp_path: Path
) -> None:
    """A merged adapter leaves the embeddings alone; a model tuned otherwise does not. With a tied
    head vLLM goes on with the old head unless it is packed anew.
    """

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] += 0.3 * tensors[name].roll(1, dims=0)

    copy = changed_copy(reloading.models[1], tmp_path, change)
    requests = reloading.requests(4)
    before = reloading.score(requests)
    trainer = TransformersBackend(PriorConfig(), copy)
    AdapterCheck(tuple(requests), trainer.score(requests).log_probs).write(copy)
    report = reloading.publish(5, copy)
    assert report.accepted and report.max_gap < 1e-3, report
    after = reloading.score(requests)
    assert after.version == 5 and gap(after, trainer.score(requests)) < 1e-4
    assert gap(after, before) > 0.1
    assert reloading.oracle.publish(5, str(copy)).accepted


def test_a_wrong_model_is_rolled_back(reloading: Reloading, tmp_path: Path) -> None:
    """Its weights do not give the answers that its trainer wrote down."""
    requests = reloading.requests(1)
    before = reloading.score(requests)
    report = reloading.publish(7, tampered(reloading.models[2], tmp_path))
    assert not report.accepted and report.max_gap == pytest.approx(0.5, abs=0.01)
    after = reloading.score(requests)
    assert after.version == before.version == 5 and gap(after, before) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "disagree on model.norm.weight"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"has shape \[3\]"),
        (lambda t: t["model.norm.weight"].fill_(float("nan")), "model.norm.weight holds NaN"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_a_broken_model_is_refused_before_anything_is_touched(
    reloading: Reloading, tmp_path: Path, change, message: str
) -> None:
    requests = reloading.requests(2)
    before = reloading.score(requests)
    report = reloading.publish(8, changed_copy(reloading.models[2], tmp_path, change))
    assert not report.accepted and np.isnan(report.max_gap)
    assert re.search(message, report.reason)
    assert gap(reloading.score(requests), before) < 1e-5


def test_a_cut_file_is_refused(reloading: Reloading, tmp_path: Path) -> None:
    copy = tmp_path / "cut"
    shutil.copytree(reloading.models[2].path, copy)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    report = reloading.publish(9, copy)
    assert not report.accepted and "can't be read" in report.reason


def test_every_answer_is_of_one_version(reloading: Reloading) -> None:
    """Questions asked before, while and after weights are exchanged: each agrees with the oracle
    of the version that it names.
    """
    requests = reloading.requests(3)
    old = reloading.oracle.score(requests)
    model = replace(reloading.models[2], version=6)
    asked = [reloading.actor.score.remote(requests) for _ in range(8)]
    published = reloading.actor.publish.remote(model.version, model.path)
    asked += [reloading.actor.score.remote(requests) for _ in range(8)]
    assert ray.get(published).accepted
    asked.append(reloading.actor.score.remote(requests))
    assert reloading.oracle.publish(model.version, model.path).accepted
    by_version = {5: old, 6: reloading.oracle.score(requests)}
    answers = ray.get(asked)
    assert {answer.version for answer in answers} == {5, 6}
    for answer in answers:
        assert gap(answer, by_version[answer.version]) < 1e-4
    health = ray.get(reloading.actor.health.remote())
    assert (health.version, health.n_published) == (6, 4)


def test_in_place_of_a_withdrawn_model_the_model_as_loaded_serves(reloading: Reloading) -> None:
    requests = reloading.requests(4)
    expected = TransformersBackend(PriorConfig(), reloading.folder).score(requests)
    ray.get(reloading.actor.withdraw.remote(5))
    assert reloading.score(requests).version == 6
    ray.get(reloading.actor.withdraw.remote(6))
    served = reloading.score(requests)
    assert served.version == 0 and gap(served, expected) < 1e-4


def test_adapters_are_not_for_this_engine(reloading: Reloading, tmp_path: Path) -> None:
    (adapter,) = tuned_versions(reloading.folder, tmp_path, 1)
    report = reloading.publish(20, adapter.path)
    assert not report.accepted and "started to take whole models" in report.reason
