"""Segments with random but recognisable content."""

from collections.abc import Callable

import numpy as np
import pytest

from replay_service import GameSpec, Segment, SegmentHeader


def build_segment(
    spec: GameSpec,
    n_steps: int,
    *,
    sequence: int = 0,
    actor: int = 0,
    incarnation: int = 0,
    ending: str = "terminated",
    n_trainable: int | None = None,
    with_legal: bool = False,
    with_text: bool = False,
) -> Segment:
    """Content is drawn from (actor, sequence); `ending` is terminated, truncated or open."""
    rng = np.random.default_rng([actor, incarnation, sequence])
    terminated, truncated = np.zeros((2, n_steps), dtype=bool)
    terminated[-1] = ending == "terminated"
    truncated[-1] = ending == "truncated"
    obs = rng.integers(0, 256, (n_steps + spec.frame_stack, *spec.obs_shape))
    policy = rng.dirichlet(np.ones(spec.n_actions), n_steps)
    action = rng.integers(0, spec.n_actions, n_steps).astype(np.int16)
    reward = rng.normal(size=n_steps).astype(np.float32)
    root_value = rng.normal(size=n_steps).astype(np.float16)
    priority = rng.random(n_steps).astype(np.float32)
    legal = None
    if with_legal:
        legal = rng.random((n_steps, spec.n_actions)) < 0.8
        legal[np.arange(n_steps), action] = True
        policy = np.where(legal, policy, 0.0)
        policy /= policy.sum(1, keepdims=True)
    prompt = tuple(f"state {i % 3} of {sequence}" if i % 2 else "" for i in range(n_steps))
    return Segment(
        header=SegmentHeader(
            run_id="test",
            actor=actor,
            incarnation=incarnation,
            sequence=sequence,
            env_id=0,
            level="1-1",
            seed=7,
            rom_hash="",
            weight_version_min=sequence,
            weight_version_max=sequence + 1,
            prior_version=-1,
            reward_version=1,
        ),
        obs=obs.astype(spec.obs_dtype),
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        policy=policy.astype(np.float16),
        root_value=root_value,
        priority=priority,
        n_trainable=n_steps if n_trainable is None else n_trainable,
        legal=legal,
        prompt=prompt if with_text else None,
        options=(tuple(f"action {a}" for a in range(spec.n_actions)),) * n_steps
        if with_text
        else None,
    )


@pytest.fixture(scope="session")
def make_segment() -> Callable[..., Segment]:
    return build_segment


@pytest.fixture(scope="session")
def image_spec() -> GameSpec:
    return GameSpec(obs_shape=(1, 4, 4), obs_dtype="uint8", n_actions=3)


@pytest.fixture(scope="session")
def vector_spec() -> GameSpec:
    return GameSpec(obs_shape=(4,), obs_dtype="float32", n_actions=2)
