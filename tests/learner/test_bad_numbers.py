"""Updates with NaN or infinity: skipped, named, counted, saved; nothing of them is published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.bad_numbers import BadBatches
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.learner_actor import LearnerActor
from learner.weights import WeightStore
from learner.world_model import WorldModelConfig
from replay_service.segment import GameSpec
from replay_service.targets import Batch, Handles, TargetConfig

SPEC = GameSpec((4,), "float32", n_actions=2)
MODEL = WorldModelConfig(embed_dim=16, n_heads=2, mlp_hidden=16, window_steps=2)
TARGETS = TargetConfig(unroll_steps=3, n_step=2, discount=0.9)


def make_batch(seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    n_samples, n_unroll, n_steps = 4, TARGETS.unroll_steps, TARGETS.context_steps
    parts = (
        Handles(0, np.arange(1), np.full(1, 5)),
        Handles(1, np.arange(3), np.full(3, 6)),
    )
    return Batch(
        obs=torch.randn(n_samples, n_steps, 4, generator=rng),
        action=torch.randint(0, 2, (n_samples, n_steps - 1), generator=rng),
        reward=torch.rand(n_samples, n_unroll, generator=rng),
        n_step_return=torch.rand(n_samples, n_unroll, generator=rng),
        bootstrap_discount=torch.full((n_samples, n_unroll), 0.81),
        bootstrap_index=(torch.arange(n_unroll) + TARGETS.n_step).repeat(n_samples, 1),
        policy=torch.softmax(torch.randn(n_samples, n_unroll, 2, generator=rng), -1),
        root_value=torch.zeros(n_samples, n_unroll),
        valid=torch.ones(n_samples, n_unroll, dtype=torch.bool),
        importance=torch.ones(n_samples),
        weight_version=torch.zeros(n_samples, dtype=torch.long),
        target_version=torch.zeros(n_samples, dtype=torch.long),
        handles=parts,
    )


class Batches:
    """Numbered random batches; those in `spoilt` have a NaN in one column."""

    def __init__(self, spoilt: dict[int, str]) -> None:
        self.spoilt = spoilt
        self.drawn: list[Batch] = []

    def next(self) -> Batch:
        batch = make_batch(len(self.drawn))
        if len(self.drawn) in self.spoilt:
            getattr(batch, self.spoilt[len(self.drawn)]).view(-1)[0] = torch.nan
        self.drawn.append(batch)
        return batch

    def update_priorities(self, handles: object, priorities: np.ndarray) -> None:
        assert priorities.shape == (4,)


def make_learner(folder: Path | None = None, *, keep: int = 8, **settings: float) -> Learner:
    config = LearnerConfig(warmup_updates=0, publish_every=1, **settings)
    bad_batches = None if folder is None else BadBatches(folder, keep)
    return Learner(config, MODEL, TARGETS, SPEC, "cpu", 0, bad_batches)


def state(learner: Learner) -> list[torch.Tensor]:
    return [value.clone() for value in learner.model.state_dict().values()]


COLUMNS = ("obs", "reward", "n_step_return", "policy", "importance")


@pytest.mark.parametrize("column", COLUMNS)
def test_a_bad_batch_changes_nothing_and_is_saved_as_it_was(tmp_path, column):
    learner, source = make_learner(tmp_path / "bad"), Batches({2: column})
    learner.train(2, source, None)
    before = state(learner)
    report = learner.train(1, source, None)
    assert all(torch.equal(a, b) for a, b in zip(before, state(learner), strict=True))
    (step,) = report.bad_steps
    assert step.update == 2 and f"batch.{column}" in step.not_finite
    assert report.n_bad_in_a_row == 1 and report.last_update == 3
    assert report.metrics["skipped_total"] == 1
    with np.load(step.file, allow_pickle=False) as saved:
        for field in dataclasses.fields(Batch):
            value = getattr(source.drawn[2], field.name)
            if isinstance(value, torch.Tensor):
                np.testing.assert_array_equal(saved[field.name], value.numpy())
        assert "legal" not in saved  # this game has none
        assert (saved["update"], saved["version"]) == (2, 2)
        for index, part in enumerate(source.drawn[2].handles):
            np.testing.assert_array_equal(saved[f"handles_{index}_slot"], part.slot)
            np.testing.assert_array_equal(saved[f"handles_{index}_generation"], part.generation)
            assert saved[f"handles_{index}_shard"] == part.shard
        measured = {name for name in step.not_finite if "." not in name}
        assert measured and all(not np.isfinite(saved[f"measured_{name}"]) for name in measured)
    assert learner.train(1, source, None).n_bad_in_a_row == 0


def test_a_number_that_only_the_input_statistics_would_see_is_found(tmp_path):
    """The last observation of the longest window is read by no loss here, but by `adapt_inputs`."""
    learner, batch = make_learner(), make_batch(0)
    batch.obs[0, -1, 0] = torch.inf
    batch.bootstrap_index.fill_(0)
    learner.update(batch)
    assert learner.train(1, Batches({}), None).metrics["skipped_total"] == 1
    assert learner.is_finite()


@pytest.mark.parametrize(
    ("layer", "kind"), [("policy_head", "output"), ("latent_in", "output"), ("encoder", "loss")]
)
def test_spoilt_weights_are_noticed_and_not_published(tmp_path, layer, kind):
    learner, source, store = make_learner(), Batches({}), WeightStore()
    learner.train(3, source, store)
    assert store.published_version() == 3 and learner.is_finite()
    with torch.no_grad():
        next(getattr(learner.model, layer).parameters()).view(-1)[0] = torch.nan
    report = learner.train(4, source, store)
    assert len(report.bad_steps) == report.n_bad_in_a_row == 4
    assert all(kind in step.not_finite for step in report.bad_steps)
    assert store.published_version() == 3 and not learner.is_finite()


def test_only_the_newest_files_stay_also_after_a_roll_back(tmp_path):
    learner = make_learner(tmp_path / "bad", keep=3)
    learner.save(tmp_path / "saved")
    source = Batches({n: "reward" for n in range(0, 20, 2)})
    first = learner.train(8, source, None).bad_steps
    assert [Path(s.file).is_file() for s in first] == [False, True, True, True]
    learner.roll_back(tmp_path / "saved")
    learner.advance_version(8)
    second = learner.train(3, source, None).bad_steps
    assert [s.update for s in second] == [0, 2]
    kept = sorted((tmp_path / "bad").iterdir())
    assert kept == [Path(step.file) for step in (*first[-1:], *second)]


def test_the_batch_that_a_row_of_bad_updates_began_with_is_never_pushed_out(tmp_path):
    learner, began = make_learner(tmp_path / "bad", keep=2), []
    learner.save(tmp_path / "saved")
    for n_rows in (1, 2):
        with torch.no_grad():
            learner.model.latent_in.weight[0, 0] = torch.nan
        steps = learner.train(12, Batches({}), None).bad_steps
        assert len(steps) == 12
        began.append(Path(steps[0].file))
        learner.roll_back(tmp_path / "saved")
        learner.advance_version(100 * n_rows)
    assert sorted((tmp_path / "bad").iterdir()) == began


def test_a_learner_goes_on_where_a_bad_batch_cannot_be_saved(tmp_path, caplog):
    (tmp_path / "bad").write_text("a file in the way")
    report = make_learner(tmp_path / "bad").train(2, Batches({0: "reward"}), None)
    assert [step.file for step in report.bad_steps] == [""]
    assert report.n_bad_in_a_row == 0
    assert "bad batch can't be saved" in caplog.text


def test_metrics_are_means_over_the_finite_updates():
    report = make_learner().train(4, Batches({1: "reward", 3: "obs"}), None)
    assert len(report.bad_steps) == 2
    assert all(np.isfinite(value) for value in report.metrics.values()), report.metrics


def test_a_roll_back_restores_every_file_and_publishes_above_all_versions(tmp_path):
    source, store = Batches({6: "obs"}), WeightStore()
    settings = {"model_config": MODEL, "targets": TARGETS, "spec": SPEC, "device": "cpu"}
    config = LearnerConfig(publish_every=2, averaged_share=0.5)
    actor = LearnerActor(config=config, **settings, seed=0, source=source, sink=store)
    actor.train(3)
    actor.save(tmp_path / "saved")
    actor.train(6)
    assert store.published_version() == 8 and actor.is_finite()
    assert actor.roll_back(tmp_path / "saved") == 9
    actor.save(tmp_path / "again")
    for name in ("model", "target", "average", "optimizer"):
        file = f"{name}.safetensors"
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert actor.roll_back(tmp_path / "saved", acted=20) == 21
    report = actor.train(1)
    assert report.metrics["skipped_total"] == 1  # what happened stays counted
    assert report.last_update == 4
    assert store.published_version() == 22


def test_the_networks_health_is_looked_at_now_and_then_and_survives_a_restart(tmp_path):
    learner, source = make_learner(watch_every=3), Batches({})
    seen = [learner.train(1, source, None).metrics for _ in range(5)]
    names = ("dormant_share", "policy_logit_range", "value_logit_range")
    figures = [tuple(metrics[name] for name in names) for metrics in seen]
    assert figures[0] == figures[1] == figures[2] != figures[3] == figures[4]
    assert 0.0 <= figures[3][0] < 1.0 and min(figures[3][1:]) > 0.0
    learner.save(tmp_path)
    other = make_learner(watch_every=3)
    other.load(tmp_path)
    metrics = other.train(1, source, None).metrics
    assert tuple(metrics[name] for name in names) == figures[4]
    counters = json.loads((tmp_path / "learner.json").read_text())
    del counters["watched"]  # as before there was such a look
    (tmp_path / "learner.json").write_text(json.dumps(counters))
    other.load(tmp_path)
    assert not set(names) & set(other.train(1, source, None).metrics)
