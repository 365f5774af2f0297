"""Segments of a real replay searched again by a small real model; no Ray."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.prior.backend import LocalPriorTransport
from actors.prior.client import PriorClient
from actors.prior.config import PriorConfig
from actors.prior.transformers_backend import TransformersBackend
from actors.reanalysis import Reanalyser, ReanalysisConfig
from actors.search import InjectionConfig, Planner, SearchConfig
from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm
from learner.weights import NO_VERSION, Weights, WeightStore, snapshot_weights
from learner.world_model import WorldModel, WorldModelConfig
from replay_service import (
    GameSpec,
    LocalReanalysisSource,
    Replay,
    ReplayConfig,
    Segment,
    SegmentHeader,
    TargetConfig,
)

MODEL = WorldModelConfig(
    embed_dim=16,
    n_layers=2,
    n_heads=2,
    window_steps=3,
    encoder_channels=4,
    mlp_hidden=16,
    support_size=11,
    support_max=2.0,
)
VECTOR = GameSpec((3,), "float32", n_actions=3)
IMAGES = GameSpec((1, 16, 16), "uint8", n_actions=3, frame_stack=2)
TARGETS = TargetConfig(unroll_steps=3, n_step=2)
SEARCH = SearchConfig(n_simulations=10)
DISCOUNT = 0.97
WORDS = ("left", "right", "jump high")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory):
    recipe = TinyRecipe(weight_scale=4.0, n_corpus_lines=300)
    return ensure_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny", recipe)


def make_weights(spec: GameSpec, version: int) -> Weights:
    """Random ones: heads are zero at first, which would hide every error."""
    model = WorldModel(MODEL, spec).double()
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise + (parameter.dim() == 1))
    return snapshot_weights(model, version)


def make_segment(
    spec: GameSpec,
    n_steps: int,
    sequence: int = 0,
    *,
    version: int = 0,
    n_trainable: int | None = None,
    with_text: bool = False,
) -> Segment:
    rng = np.random.default_rng(sequence)
    frames = (n_steps + spec.frame_stack, *spec.obs_shape)
    obs = rng.integers(256, size=frames) if spec.is_image else rng.normal(size=frames)
    legal = rng.random((n_steps, spec.n_actions)) < 0.8
    action = rng.integers(spec.n_actions, size=n_steps)
    legal[np.arange(n_steps), action] = True
    texts = [tuple(w if ok else "" for w, ok in zip(WORDS, row, strict=True)) for row in legal]
    return Segment(
        header=SegmentHeader(
            run_id="test",
            actor=0,
            incarnation=0,
            sequence=sequence,
            env_id=0,
            level="",
            seed=0,
            rom_hash="",
            weight_version_min=version,
            weight_version_max=version,
            prior_version=-1,
            reward_version=0,
        ),
        obs=obs.astype(spec.obs_dtype),
        action=action.astype(np.int16),
        reward=np.zeros(n_steps, np.float32),
        terminated=np.zeros(n_steps, bool),
        truncated=np.zeros(n_steps, bool),
        policy=(legal / legal.sum(1, keepdims=True)).astype(np.float32),
        root_value=np.full(n_steps, 7.0, np.float32),
        priority=np.ones(n_steps, np.float32),
        n_trainable=n_steps if n_trainable is None else n_trainable,
        legal=legal,
        prompt=tuple(f"world {sequence} x {i}" for i in range(n_steps)) if with_text else None,
        options=tuple(texts) if with_text else None,
    )


def make_replay(spec: GameSpec, *, shard: int = 0, capacity_mb: float = 1.0) -> Replay:
    config = ReplayConfig(capacity_mb=capacity_mb, min_positions=1, scalars="float32", uniform=True)
    return Replay(config, TARGETS, spec, seed=0, shard=shard)


def make_planner(
    model: WorldModel, search: SearchConfig, n_envs: int, injection: InjectionConfig | None = None
) -> Planner:
    return Planner(model, search, n_envs=n_envs, discount=DISCOUNT, seed=9, injection=injection)


def make_reanalyser(
    spec: GameSpec,
    store: WeightStore,
    *replays: Replay,
    search: SearchConfig = SEARCH,
    batch_steps: int = 7,
    prior: PriorClient | None = None,
    injection: InjectionConfig | None = None,
) -> Reanalyser:
    model = WorldModel(MODEL, spec).double().eval()
    return Reanalyser(
        model=model,
        planner=make_planner(model, search, batch_steps, injection),
        prior=prior,
        weight_source=store,
        source=LocalReanalysisSource(replays),
        unroll_steps=TARGETS.unroll_steps,
    )


def store_of(*weights: Weights) -> WeightStore:
    store = WeightStore()
    for each in weights:
        store.push(each)
    return store


def stored(replay: Replay, index: int, name: str) -> np.ndarray:
    """One column of the `index`-th oldest segment's steps."""
    held = replay.ring.live[index]
    end = held.start + held.n_rows - replay.spec.frame_stack
    return replay.ring.read(name, slice(held.start, end))


def walk(
    spec: GameSpec,
    weights: Weights,
    segment: Segment,
    search: SearchConfig,
    priors: list | None = None,
    injection: InjectionConfig | None = None,
    env_steps: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Policy and value of every step, searched as acting does: step after step, one context."""
    model = WorldModel(MODEL, spec).double().eval()
    model.load_state_dict({name: torch.tensor(t) for name, t in weights.tensors.items()})
    planner = make_planner(model, search, 1, injection)
    policies, values = [], []
    for step in range(len(segment)):
        frames = segment.obs[step : step + spec.frame_stack]
        output = planner.search(
            np.zeros(1, int),
            np.concatenate(list(frames))[None] if spec.is_image else frames,
            np.array([segment.action[step - 1] if step else -1]),
            segment.legal[step : step + 1],
            mix=None if priors is None else priors[step],
            env_steps=env_steps,
        )
        policies.append(output.policy[0])
        values.append(output.root_value[0])
    return np.array(policies), np.array(values)


@pytest.mark.parametrize("variant", ["puct", "gumbel"])
@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "stacked images"])
def test_new_targets_are_those_of_a_search_step_by_step(spec, variant):
    """Batches cut through segments, windows are rebuilt: neither may show."""
    search = replace(SEARCH, variant=variant)
    weights = make_weights(spec, version=5)
    segments = [make_segment(spec, n, sequence=n) for n in (11, 4, 1)]
    replay = make_replay(spec)
    replay.add(segments)
    report = make_reanalyser(spec, store_of(weights), replay, search=search).refresh(3, 0)
    for index, segment in enumerate(segments):
        policy, value = walk(spec, weights, segment, search)
        np.testing.assert_allclose(stored(replay, index, "policy"), policy, atol=1e-6)
        np.testing.assert_allclose(stored(replay, index, "root_value"), value, atol=1e-5)
        assert not (policy[~segment.legal]).any()
        assert (stored(replay, index, "target_version") == 5).all()
        assert (stored(replay, index, "weight_version") == 0).all()
    assert (report.n_segments, report.n_positions, report.n_applied) == (3, 16, 16)
    assert (report.weight_version, report.versions_gained) == (5, 15)
    assert replay.sample(64).target_version.tolist() == [5] * 64


def test_targets_that_no_window_reads_are_left_alone():
    replay = make_replay(VECTOR)
    replay.add([make_segment(VECTOR, 12, n_trainable=6)])
    report = make_reanalyser(VECTOR, store_of(make_weights(VECTOR, 1)), replay).refresh(1, 0)
    n_read = 6 + TARGETS.unroll_steps - 1
    assert report.n_applied == n_read
    assert stored(replay, 0, "target_version").tolist() == [1] * n_read + [0] * (12 - n_read)
    assert (stored(replay, 0, "root_value")[n_read:] == 7.0).all()


def test_only_older_targets_are_searched_and_newer_weights_are_pulled():
    store = WeightStore()
    replay = make_replay(VECTOR)
    replay.add([make_segment(VECTOR, 5, sequence=i, version=i) for i in range(4)])
    reanalyser = make_reanalyser(VECTOR, store, replay)
    report = reanalyser.refresh(4, 0)
    assert (report.weight_version, report.n_segments, report.n_as_new) == (NO_VERSION, 0, 0)
    store.push(make_weights(VECTOR, 2))
    report = reanalyser.refresh(4, 0)
    assert (report.n_segments, report.n_as_new, report.versions_gained) == (2, 2, 2 + 1)
    assert [stored(replay, i, "target_version")[0] for i in range(4)] == [2, 2, 2, 3]
    report = reanalyser.refresh(4, 0)
    assert (report.n_segments, report.n_as_new, report.n_positions) == (0, 4, 0)
    store.push(make_weights(VECTOR, 9))
    assert reanalyser.refresh(4, 0).n_segments == 4
    assert [stored(replay, i, "target_version")[0] for i in range(4)] == [9] * 4
    assert replay.stats()["replay_patch_stale_total"] == 0


def test_what_was_evicted_meanwhile_is_counted_as_stale():
    class Slow(LocalReanalysisSource):
        """Its replay goes on while segments are searched."""

        def next(self, n_segments):
            requests = super().next(n_segments)
            replay.add([make_segment(VECTOR, 20, sequence=i) for i in range(10, 20)])
            return requests

    replay = make_replay(VECTOR, capacity_mb=0.02)
    replay.add([make_segment(VECTOR, 20)])
    reanalyser = make_reanalyser(VECTOR, store_of(make_weights(VECTOR, 1)), replay)
    reanalyser._source = Slow([replay])
    report = reanalyser.refresh(1, 0)
    assert (report.n_positions, report.n_applied) == (20, 0)
    assert replay.stats()["replay_patch_stale_total"] == 20
    assert (stored(replay, 0, "root_value") == 7.0).all()


def test_shards_take_turns_and_get_back_what_is_theirs():
    replays = [make_replay(VECTOR, shard=i) for i in range(3)]
    for i in (0, 2):
        replays[i].add([make_segment(VECTOR, 5, sequence=i)])
    store = store_of(make_weights(VECTOR, 1))
    reanalyser = make_reanalyser(VECTOR, store, *replays)
    assert reanalyser.refresh(2, 0).n_applied == 5
    assert reanalyser.refresh(2, 0).n_applied == 5, "the empty shard in between is passed over"
    for i in (0, 2):
        assert (stored(replays[i], 0, "target_version") == 1).all()
    report = reanalyser.refresh(2, 0)
    assert (report.n_segments, report.n_as_new) == (0, 2), "every shard was asked"


def test_a_model_that_fails_changes_no_target():
    weights = make_weights(VECTOR, 3)
    for tensor in weights.tensors.values():
        if tensor.dtype.kind == "f":
            tensor.fill(np.nan)
    replay = make_replay(VECTOR)
    replay.add([make_segment(VECTOR, 5)])
    report = make_reanalyser(VECTOR, store_of(weights), replay).refresh(1, 0)
    assert (report.n_positions, report.n_failed, report.n_applied) == (5, 5, 0)
    assert (stored(replay, 0, "root_value") == 7.0).all()


def test_the_language_model_is_asked_as_in_acting(tiny_llm):
    """Prompts and options of every step, context included, come back from replay."""
    config = PriorConfig(model=str(tiny_llm), backend="transformers", deadline_s=60.0)
    injection = InjectionConfig(mode="mixture", weight=0.9, decay_env_steps=100)
    transport = LocalPriorTransport(TransformersBackend(config, tiny_llm, device="cpu"))
    weights = make_weights(VECTOR, 4)
    segments = [
        make_segment(VECTOR, 9, sequence=1, n_trainable=7, with_text=True),
        make_segment(VECTOR, 3, sequence=2),
    ]
    replay = make_replay(VECTOR)
    replay.add(segments)
    reanalyser = make_reanalyser(
        VECTOR,
        store_of(weights),
        replay,
        prior=PriorClient(config, transport, seed=3),
        injection=injection,
    )
    report = reanalyser.refresh(2, env_steps=50)
    assert (report.n_positions, report.n_with_prior) == (12, 9)
    client = PriorClient(config, transport, seed=3)
    told = segments[0]
    priors = [
        client.ask([told.prompt[i]], [told.options[i]], told.legal[i : i + 1]).collect()
        for i in range(len(told))
    ]
    assert all(prior.available.all() for prior in priors)
    policy, value = walk(VECTOR, weights, told, SEARCH, priors, injection, env_steps=50)
    np.testing.assert_allclose(stored(replay, 0, "policy"), policy, atol=1e-6)
    np.testing.assert_allclose(stored(replay, 0, "root_value"), value, atol=1e-5)
    without, _ = walk(VECTOR, weights, told, SEARCH)
    assert np.abs(without - policy).max() > 0.05, "the prior makes no difference here"
    policy, _ = walk(VECTOR, weights, segments[1], SEARCH)
    np.testing.assert_allclose(stored(replay, 1, "policy"), policy, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"share": 1.0}, r"reanalysis.share must lie in \[0, 1\), got 1.0; 0 is off"),
        ({"share": float("nan")}, "reanalysis.share"),
        ({"segments_per_call": 0}, "reanalysis.segments_per_call must be at least 1, got 0"),
        ({"batch_steps": 0}, "reanalysis.batch_steps must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        ReanalysisConfig(**settings)
