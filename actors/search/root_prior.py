"""The prior at the root: the world model's policy, a language model's, or a mixture; and noise.

Everything happens in probability space over legal actions, on float64 arrays [B, A].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class InjectionConfig:
    """How a language model's prior enters the root of a search."""

    mode: Literal["llm", "world_model", "mixture"] = "mixture"  # whose policy the root starts from
    weight: float = 0.5  # share of the language model in a mixture; 1 is the language model alone
    adaptive: bool = False  # scale the share by the world model's entropy: unsure asks more
    decay_env_steps: int = 0  # env steps until the language model's share reaches 0; 0 = never

    def __post_init__(self) -> None:
        if self.mode not in ("llm", "world_model", "mixture"):
            raise ValueError(f"mode must be 'llm', 'world_model' or 'mixture', got {self.mode!r}")
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight}; 0.5 is balanced")
        if self.decay_env_steps < 0:
            raise ValueError(
                f"decay_env_steps must be at least 0, got {self.decay_env_steps}; 0 never decays"
            )


@dataclass(frozen=True, slots=True)
class RootPrior:
    """A language model's opinion on B roots.

    probabilities: [B, A] float32; rows that are not available are ignored
    available:     [B] bool
    """

    probabilities: NDArray[np.float32]
    available: BoolArray


def softmax_legal(logits: NDArray[np.floating], legal: BoolArray) -> Probabilities:
    """Softmax over legal actions; uniform over them in rows with a logit that is not finite."""
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    x = np.where(legal, np.where(finite, logits, 0.0).astype(np.float64), -np.inf)
    weights = np.exp(x - x.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def normalised_entropy(policy: Probabilities, legal: BoolArray) -> Probabilities:
    """Entropy of each row over log(number of legal actions), in [0, 1]; 0 with one action. [B]"""
    entropy = -(policy * np.log(np.maximum(policy, 1e-300))).sum(axis=1)
    n_legal = np.maximum(legal.sum(axis=1), 2)  # one action: entropy is 0, avoid log(1)
    return np.clip(entropy / np.log(n_legal), 0.0, 1.0)


def mix_root_prior(
    model_policy: NDArray[np.floating],
    llm: NDArray[np.floating],
    available: BoolArray,
    legal: BoolArray | None,
    config: InjectionConfig,
    env_steps: NDArray[np.int64] | int,
) -> Probabilities:
    """Root prior [B, A]: rows sum to 1 over legal actions.

    env_steps: of the run, for the decay; one for all rows or one each [B]
    A row uses the world model alone where the language model is not available, is not finite or
    puts nothing on a legal action.
    """
    legal = np.ones(model_policy.shape, np.bool_) if legal is None else legal
    model = np.where(legal, model_policy, 0.0).astype(np.float64)
    model /= model.sum(axis=1, keepdims=True)
    sane = np.isfinite(llm).all(axis=1) & (llm >= 0).all(axis=1)
    advice = np.where(legal & sane[:, None], llm, 0.0).astype(np.float64)
    mass = advice.sum(axis=1, keepdims=True)
    usable = available & (mass[:, 0] > 0)
    advice /= np.where(mass > 0, mass, 1.0)
    share = {"llm": 1.0, "world_model": 0.0, "mixture": config.weight}[config.mode]
    if config.decay_env_steps:
        share = share * np.maximum(0.0, 1.0 - np.asarray(env_steps) / config.decay_env_steps)
    weight = np.where(usable, share, 0.0)
    if config.adaptive and config.mode == "mixture":
        weight = weight * normalised_entropy(model, legal)
    return (1.0 - weight[:, None]) * model + weight[:, None] * advice


def add_dirichlet_noise(
    prior: Probabilities,
    legal: BoolArray,
    alpha: float,
    fraction: NDArray[np.floating] | float,
    rng: np.random.Generator,
) -> Probabilities:
    """Mix each row with Dirichlet(alpha) noise over its legal actions.

    fraction: share of the noise, for all rows or one each [B]
    """
    noise = np.where(legal, rng.gamma(alpha, size=prior.shape), 0.0)
    total = noise.sum(axis=1, keepdims=True)
    # A tiny alpha can underflow every draw of a row to 0; uniform is then the only fair answer.
    uniform = legal / legal.sum(axis=1, keepdims=True)
    noise = np.where(total > 0, noise / np.where(total > 0, total, 1.0), uniform)
    share = np.broadcast_to(fraction, len(prior))[:, None]
    return (1.0 - share) * prior + share * noise
