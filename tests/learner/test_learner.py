"""The learner: targets, importance weights, skipped steps, publication, exact resumption."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from learner.config import LearnerConfig, StepScales
from learner.learner import Learner
from learner.learner_actor import LearnerActor
from learner.weights import WeightStore
from learner.world_model import WorldModelConfig
from replay_service.segment import GameSpec
from replay_service.targets import Batch, Handles, TargetConfig

SPEC = GameSpec((4,), "float32", n_actions=2)
MODEL = WorldModelConfig(embed_dim=16, n_heads=2, mlp_hidden=16, window_steps=2)
TARGETS = TargetConfig(unroll_steps=3, n_step=2, discount=0.9)


def make_learner(seed: int = 0, **settings: float) -> Learner:
    config = LearnerConfig(warmup_updates=0, publish_every=2, **settings)
    return Learner(config, MODEL, TARGETS, SPEC, "cpu", seed)


def make_batch(n_samples: int = 4, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    n_unroll, n_steps = TARGETS.unroll_steps, TARGETS.context_steps
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
        handles=Handles(0, np.arange(n_samples), np.zeros(n_samples, dtype=np.int64)),
    )


class Batches:
    """A source of numbered random batches that remembers the priorities it was given."""

    def __init__(self, start: int = 0) -> None:
        self.position = start
        self.priorities: list[np.ndarray] = []

    def next(self) -> Batch:
        self.position += 1
        return make_batch(seed=self.position)

    def update_priorities(self, handles: Handles, priorities: np.ndarray) -> None:
        assert len(handles) == len(priorities)
        self.priorities.append(priorities)


def parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def gradients(learner: Learner, batch: Batch) -> list[torch.Tensor]:
    learner.update(batch)
    return [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]


def rows(batch: Batch, index: list[int]) -> Batch:
    tensors = {
        field.name: getattr(batch, field.name)[index]
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), torch.Tensor)
    }
    handles = Handles(0, batch.handles.slot[index], batch.handles.generation[index])
    return dataclasses.replace(batch, handles=handles, **tensors)


def test_bootstrap_reads_the_target_network_at_the_bootstrap_index():
    learner = make_learner()
    with torch.no_grad():
        learner.target_model.value_head[-1].bias.normal_()
    batch = make_batch()
    batch.bootstrap_discount[0, 1] = 0.0
    batch.bootstrap_index[0, 1] = 0
    targets = learner.gradients.loss_targets(batch)
    latents = learner.target_model.encode(batch.obs.flatten(0, 1)).unflatten(0, (4, 5))
    values = learner.target_model.values(latents, batch.action)
    torch.testing.assert_close(targets.value[1, 2], batch.n_step_return[1, 2] + 0.81 * values[1, 4])
    assert targets.value[0, 1] == batch.n_step_return[0, 1]
    assert torch.equal(targets.latent, latents[:, 1:4])


def test_importance_scales_each_samples_gradient():
    batch = make_batch(n_samples=2)
    weighted = dataclasses.replace(batch, importance=torch.tensor([1.0, 0.25]))
    settings = {"real_steps": 1, "grad_clip": 1e9}  # no clipping, no random seam
    both = gradients(make_learner(**settings), weighted)
    first = gradients(make_learner(**settings), rows(batch, [0]))
    second = gradients(make_learner(**settings), rows(batch, [1]))
    for joint, one, two in zip(both, first, second, strict=True):
        torch.testing.assert_close(joint, (one + 0.25 * two) / 2, rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(n_samples=st.integers(1, 9), accumulate=st.integers(1, 10), seed=st.integers(0, 99))
def test_parts_of_a_batch_give_the_gradient_metrics_and_priorities_of_the_whole(
    n_samples, accumulate, seed
):
    learners = make_learner(grad_clip=1e9), make_learner(grad_clip=1e9, accumulate=accumulate)
    batch = make_batch(n_samples, seed)
    batch.valid[0, -1] = False
    batch.importance.uniform_(0.1, 1.0)
    wide = {
        field.name: value.double()
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
        and value.is_floating_point()
    }
    batch = dataclasses.replace(batch, **wide)
    found = []
    for learner in learners:
        for model in (learner.model, learner.target_model):
            torch.manual_seed(seed)
            for parameter in model.parameters():  # fresh heads are 0 and pass nothing on
                torch.nn.init.normal_(parameter, std=0.3)
            model.double()
        metrics, priorities = learner.update(batch)
        found.append(([p.grad for p in learner.model.parameters()], metrics, priorities))
    (whole, metrics, priorities), (parts, same_metrics, same_priorities) = found
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert max(float(g.abs().max()) for g in whole) > 1e-3
    assert same_metrics == pytest.approx(metrics, rel=1e-6)
    np.testing.assert_allclose(same_priorities, priorities, rtol=1e-6)


@pytest.mark.parametrize("seam", [1, 2, 3])
def test_every_loss_reaches_encoder_and_dynamics_wherever_the_seam_is(seam, monkeypatch):
    learner = make_learner()
    monkeypatch.setattr(learner, "_rng", np.random.default_rng(0))
    monkeypatch.setattr(LearnerConfig, "max_real_steps", lambda self, targets: seam)
    for step in range(3):  # zero-initialised heads pass gradients on from the second step
        learner.update(make_batch(seed=step))
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_priorities_are_the_mean_error_over_valid_steps():
    learner = make_learner()
    batch = make_batch(n_samples=2)
    batch.bootstrap_discount.zero_()
    batch.n_step_return[:] = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    batch.valid[0, 2] = False
    _, priorities = learner.update(batch)  # a fresh model predicts 0
    np.testing.assert_allclose(priorities, [1.5, 4.0], atol=1e-4)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    learner = make_learner()
    source = Batches()
    learner.train(2, source, None)
    before = parameters(learner)
    batch = make_batch()
    batch.obs[0, 0, 0] = torch.nan
    learner.update(batch)
    assert all(torch.equal(value, before[name]) for name, value in parameters(learner).items())
    report = learner.train(1, source, None)
    assert report.metrics["skipped_total"] == 1.0
    assert np.isfinite(report.metrics["loss_total"])
    assert any(not torch.equal(v, before[name]) for name, v in parameters(learner).items())


def test_training_lowers_the_loss_of_one_batch():
    learner = make_learner(learning_rate=3e-3)
    batch = make_batch()
    first, _ = learner.update(batch)
    for _ in range(60):
        last, _ = learner.update(batch)
    assert last["loss_total"] < 0.8 * first["loss_total"]


def test_target_network_follows_by_its_momentum():
    learner = make_learner(target_momentum=0.25)
    before = {n: v.clone() for n, v in learner.target_model.state_dict().items()}
    learner.update(make_batch())
    online = learner.model.state_dict()
    for name, value in learner.target_model.named_parameters():
        torch.testing.assert_close(value.data, before[name].lerp(online[name], 0.25))
    for name, value in learner.target_model.named_buffers():
        torch.testing.assert_close(value, dict(learner.model.named_buffers())[name])


def test_published_weights_are_the_newest_ones_without_averaging():
    learner = make_learner()
    for _ in range(3):
        learner.update(make_batch())
    for name, array in learner.weights().tensors.items():
        np.testing.assert_array_equal(array, learner.model.state_dict()[name].numpy())


def test_published_weights_average_a_growing_share_of_the_updates():
    """With share 1 the momentum is 1 / t: the plain mean of all weights so far."""
    learner = make_learner(averaged_share=1.0)
    seen = []
    for _ in range(6):
        learner.update(make_batch())
        seen.append({n: v.clone() for n, v in learner.model.named_parameters()})
    published = learner.weights().tensors
    for name in seen[0]:
        mean = torch.stack([weights[name].detach() for weights in seen]).mean(0)
        np.testing.assert_allclose(published[name], mean.numpy(), atol=1e-6)
    for name in published.keys() - seen[0].keys():  # input statistics
        np.testing.assert_array_equal(published[name], learner.model.state_dict()[name].numpy())
    momenta = [LearnerConfig(averaged_share=0.2).average_momentum_at(t) for t in (1, 5, 10, 500)]
    assert momenta == pytest.approx([1.0, 1.0, 0.5, 0.01])


def test_train_publishes_every_second_update_and_returns_priorities():
    learner, source, store = make_learner(), Batches(), WeightStore()
    report = learner.train(5, source, store)
    assert report.n_updates == 5 == learner.updates == len(source.priorities)
    assert store.published_version() == 4
    assert set(report.seconds) == {"sample_wait", "transfer", "compute", "publish"}
    wanted = {"loss_total", "loss_policy", "loss_value", "loss_reward", "loss_latent", "entropy"}
    assert wanted | {"grad_norm", "learning_rate", "value_mean"} <= set(report.metrics)


def test_a_batch_serves_as_many_updates_as_the_interval_says():
    learner, source = make_learner(sample_interval=3), Batches()
    learner.train(7, source, None)
    learner.train(2, source, None)  # begins with a batch of its own, so that restarts repeat
    assert source.position == 4 and len(source.priorities) == 9
    every = make_learner()
    drawn = [make_batch(seed=1)] * 3 + [make_batch(seed=2)] * 3
    for batch in drawn:
        every.update(batch)
    again, source = make_learner(sample_interval=3), Batches()
    again.train(6, source, None)
    for name, value in parameters(every).items():
        assert torch.equal(value, parameters(again)[name])


def test_resumed_training_is_bit_equal(tmp_path):
    learner = make_learner(averaged_share=0.5)
    learner.train(5, Batches(), None)
    learner.save(tmp_path)
    learner.train(5, Batches(5), None)
    resumed = make_learner(seed=99, averaged_share=0.5)
    resumed.load(tmp_path)
    assert resumed.updates == 5
    resumed.train(5, Batches(5), None)
    for name, value in parameters(resumed).items():
        assert torch.equal(value, learner.model.state_dict()[name]), name
    for name, value in resumed.target_model.state_dict().items():
        assert torch.equal(value, learner.target_model.state_dict()[name]), name
    for name, array in resumed.weights().tensors.items():
        np.testing.assert_array_equal(array, learner.weights().tensors[name])


def test_versions_grow_when_an_older_checkpoint_is_restored(tmp_path):
    store, source = WeightStore(), Batches()
    settings = {"config": LearnerConfig(publish_every=2), "model_config": MODEL}
    settings |= {"targets": TARGETS, "spec": SPEC, "device": "cpu", "seed": 0}
    actor = LearnerActor(**settings, source=source, sink=store)
    assert actor.publish() == 0
    actor.save(tmp_path)
    actor.train(6)
    assert store.published_version() == 6
    again = LearnerActor(**settings, source=source, sink=store)
    again.load(tmp_path)
    assert again.publish() == 7
    assert again.publish() == 8
    again.train(2)
    assert store.published_version() == again.weights_version() == 10


def test_load_names_file_and_key(tmp_path):
    learner = make_learner()
    learner.train(1, Batches(), None)
    learner.save(tmp_path)
    path = tmp_path / "target.safetensors"
    tensors = load_file(path)
    removed = tensors.pop("action_in.weight")
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"target\.safetensors: key 'action_in.weight' is missing"):
        learner.load(tmp_path)
    save_file({**tensors, "action_in.weight": removed[:, :3].contiguous()}, path)
    with pytest.raises(ValueError, match=r"action_in.weight' has shape \(2, 3\)"):
        learner.load(tmp_path)
    save_file({**tensors, "action_in.weight": removed}, path)
    counters = json.loads((tmp_path / "learner.json").read_text())
    del counters["rng_state"]
    (tmp_path / "learner.json").write_text(json.dumps(counters))
    with pytest.raises(ValueError, match=r"learner\.json: key 'rng_state' is missing"):
        learner.load(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read .*learner\.json"):
        learner.load(tmp_path / "nowhere")


def test_scales_are_settings_for_one_call():
    scaled = make_learner(learning_rate=2e-3, entropy_weight=0.02)
    plain = make_learner(learning_rate=1e-3, entropy_weight=0.01)
    report = scaled.train(3, Batches(), None, StepScales(0.5, 0.5))
    plain.train(3, Batches(), None)
    assert report.metrics["learning_rate"] == 1e-3
    now = parameters(plain)
    assert all(torch.equal(value, now[name]) for name, value in parameters(scaled).items())
    assert scaled.train(1, Batches(3), None).metrics["learning_rate"] == 2e-3


def test_learning_rate_rises_then_falls_along_a_cosine_to_a_tenth():
    config = LearnerConfig(learning_rate=1.0, warmup_updates=10, decay_updates=100)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(50) == pytest.approx(0.55)
    assert config.learning_rate_at(100) == config.learning_rate_at(900) == pytest.approx(0.1)
    constant = LearnerConfig(learning_rate=1.0, warmup_updates=0)
    assert constant.learning_rate_at(0) == constant.learning_rate_at(10_000) == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("target_momentum", 1.5),
        ("value_weight", -1.0),
    ],
)
def test_bad_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"learner\.{field} must .*{value}"):
        LearnerConfig(**{field: value})
