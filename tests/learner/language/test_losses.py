"""The losses against slow references, and their gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.language.losses import (
    ADVANTAGE_CLIP,
    LARGEST_WEIGHT,
    Lesson,
    LossConfig,
    language_losses,
    scaled_advantages,
)

NAMES = ("sft", "rft", "awr", "ppo")


def random_state(rng: np.random.Generator, n_options: int) -> tuple[np.ndarray, dict]:
    scores = np.log(rng.dirichlet(np.ones(n_options)) * rng.uniform(0.1, 0.9))
    return scores, {
        "shares": rng.dirichlet(np.ones(n_options)),
        "advantage": rng.normal(size=n_options),
        "played": int(rng.integers(n_options)),
        "reference": np.log(rng.dirichlet(np.ones(n_options))),
        "old": np.log(rng.dirichlet(np.ones(n_options))),
    }


def slow_loss(scores: np.ndarray, lesson: dict, config: LossConfig) -> float:
    """One example, option by option."""
    mass = sum(np.exp(s) for s in scores)
    q = [np.exp(s) / mass for s in scores]
    played, advantage = lesson["played"], lesson["advantage"]
    taught = {
        "sft": lambda: -sum(p * np.log(x) for p, x in zip(lesson["shares"], q, strict=True)),
        "rft": lambda: -sum(x * a for x, a in zip(q, advantage, strict=True)),
        "awr": lambda: (
            -min(np.exp(advantage[played] / config.awr_temperature), LARGEST_WEIGHT)
            * np.log(q[played])
        ),
        "ppo": lambda: (
            -min(
                (r := q[played] / np.exp(lesson["old"][played])) * advantage[played],
                min(max(r, 1 - config.ppo_clip), 1 + config.ppo_clip) * advantage[played],
            )
        ),
    }[config.name]()
    kl = sum(x * (np.log(x) - r) for x, r in zip(q, lesson["reference"], strict=True))
    kl_term = 0.0 if config.name == "sft" else config.kl_weight * kl
    return taught + kl_term - config.mass_weight * np.log(mass)


def tensors(lesson: dict) -> Lesson:
    return Lesson(**{k: torch.tensor(v) if k != "played" else v for k, v in lesson.items()})


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(2, 12), min_size=1, max_size=5),
)
def test_losses_equal_the_slow_reference(name, seed, sizes):
    rng = np.random.default_rng(seed)
    config = LossConfig(name=name, mass_weight=0.3, kl_weight=0.7, awr_temperature=0.5)
    states = [random_state(rng, n) for n in sizes]
    scores = [torch.tensor(s) for s, _ in states]
    loss, sums = language_losses(scores, [tensors(lesson) for _, lesson in states], config)
    expected = sum(slow_loss(s, lesson, config) for s, lesson in states)
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert sums["kl"] >= -1e-9 and sums["kl_reference"] >= -1e-9
    assert 0 < sums["label_mass"] < len(sizes)


@settings(max_examples=30)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32 - 1))
def test_gradients_equal_finite_differences(name, seed):
    rng = np.random.default_rng(seed)
    config = LossConfig(name=name)
    scores, lesson = random_state(rng, 5)
    value = torch.tensor(scores, requires_grad=True)
    loss, _ = language_losses([value], [tensors(lesson)], config)
    loss.backward()
    step = 1e-6
    for i in range(5):
        moved = [scores.copy(), scores.copy()]
        moved[0][i] += step
        moved[1][i] -= step
        up, down = (slow_loss(m, lesson, config) for m in moved)
        assert float(value.grad[i]) == pytest.approx((up - down) / (2 * step), abs=1e-4)


def test_the_policy_gradient_vanishes_where_nothing_is_better():
    scores = torch.tensor([0.2, 0.3, 0.1]).log().requires_grad_()
    lesson = Lesson(torch.ones(3) / 3, torch.full((3,), 0.7), 0, scores.detach().log_softmax(0))
    config = LossConfig(name="rft", mass_weight=0.0)
    language_losses([scores], [lesson], config)[0].backward()
    torch.testing.assert_close(scores.grad, torch.zeros(3), atol=1e-6, rtol=0)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_advantages_are_scaled_and_bounded(values):
    (scaled,) = scaled_advantages([torch.tensor(values)])
    assert torch.isfinite(scaled).all() and scaled.abs().max() <= ADVANTAGE_CLIP
    assert (torch.sign(scaled) * torch.sign(torch.tensor(values)) >= 0).all()


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"name": "sgd"}, "name must be one of sft, rft, awr, ppo, got 'sgd'"),
        ({"kl_weight": -1.0}, "kl_weight must not be negative, got -1.0"),
        ({"awr_temperature": 0.0}, "awr_temperature must be positive, got 0.0"),
        ({"ppo_clip": 1.0}, r"ppo_clip must lie in \(0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(settings_, words):
    with pytest.raises(ValueError, match=words):
        LossConfig(**settings_)
