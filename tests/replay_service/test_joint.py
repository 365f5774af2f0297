"""Batches over several shards: shares, weights, and where priorities go, against one big tree."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import (
    JointTextSource,
    LocalJointBatchSource,
    Replay,
    ReplayConfig,
    TargetConfig,
    check_capacity,
)
from replay_service.joint import JointPlanner, allocate, draw_probability

CONFIG = ReplayConfig(
    capacity_mb=3, num_shards=3, min_positions=1, alpha=1.0, beta_start=1.0, priority_floor=1e-6
)
BATCH = 32
LENGTHS = (10, 25, 40)  # positions of the shards, and what their priorities are multiplied by
SCALES = (6.0, 1.0, 0.3)


@pytest.fixture
def shards(make_segment, vector_spec):
    """Three shards of uneven mass; masses lie far from positions."""
    made = []
    for shard, (n_steps, scale) in enumerate(zip(LENGTHS, SCALES, strict=True)):
        replay = Replay(CONFIG.of_one_shard, TargetConfig(), vector_spec, seed=shard, shard=shard)
        segment = make_segment(vector_spec, n_steps, sequence=shard, with_text=True)
        priority = (0.2 + segment.priority) * scale
        replay.add([replace(segment, priority=priority.astype(np.float32))])
        made.append(replay)
    return made


def weights_of(shards) -> np.ndarray:
    """The leaves of one big tree: all positions, shard after shard."""
    return np.concatenate([s.sampler.tree.leaves[:n] for s, n in zip(shards, LENGTHS, strict=True)])


def items_of(batch) -> np.ndarray:
    """[B] which leaf of the big tree every row is."""
    starts = np.cumsum([0, *LENGTHS])
    return np.concatenate([part.slot + starts[part.shard] for part in batch.handles])


def assert_counts_follow(counts: np.ndarray, share: np.ndarray) -> None:
    """As in test_sampler.py: six deviations of a chi-square statistic."""
    expected = share * counts.sum()
    assert expected.min() > 5
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < len(share) + 6 * np.sqrt(2 * len(share)), statistic


masses = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=1, max_size=9).filter(any)


@settings(max_examples=300)
@given(mass=masses, n_rows=st.integers(1, 300), offset=st.floats(0, 1, exclude_max=True))
def test_rows_follow_the_masses_to_within_one(mass, n_rows, offset):
    counts = allocate(mass, n_rows, offset)
    assert counts.sum() == n_rows
    exact = n_rows * np.array(mass) / sum(mass)
    assert (np.abs(counts - exact) < 1 + 1e-9 * n_rows).all()
    assert (counts[np.array(mass) == 0.0] == 0).all()


@settings(max_examples=50)
@given(mass=masses, n_rows=st.integers(1, 64))
def test_the_mean_of_the_rows_is_exact(mass, n_rows):
    """Over a grid of offsets a count is off its mean by less than one step of the grid, twice."""
    n_grid = 1_000
    grid = (np.arange(n_grid) + 0.5) / n_grid
    mean = np.mean([allocate(mass, n_rows, offset) for offset in grid], axis=0)
    np.testing.assert_allclose(mean, n_rows * np.array(mass) / sum(mass), atol=2 / n_grid)


@pytest.mark.parametrize("mass", [[0.0, 0.0], [1.0, -1.0], [np.nan], [np.inf, 1.0]])
def test_masses_are_checked(mass):
    with pytest.raises(ValueError, match="masses must be finite, not negative and not all 0"):
        allocate(mass, 4, 0.5)


def test_draws_over_shards_are_those_of_one_big_tree(shards):
    source = LocalJointBatchSource(shards, CONFIG, BATCH, seed=0)
    weights = weights_of(shards)
    counts = np.zeros(len(weights))
    for _ in range(2_000):
        batch = source.next()
        assert len(batch) == BATCH
        items = items_of(batch)
        np.add.at(counts, items, 1)
        expected = weights[items].min() / weights[items]
        np.testing.assert_allclose(batch.importance.numpy(), expected, rtol=1e-6)
    assert_counts_follow(counts, weights / weights.sum())


def test_weights_are_exact_however_old_the_masses(shards):
    """Masses are forged before every plan. With the shares used the mean is right, with the
    shares that the masses should have had it is far off."""
    values = np.concatenate([np.full(n, v) for n, v in zip(LENGTHS, (5.0, -1.0, 2.0), strict=True)])
    weights = weights_of(shards)
    planner = JointPlanner(CONFIG, BATCH, 3, seed=0)
    exact, naive = [], []
    for _ in range(4_000):
        for index, (shard, factor) in enumerate(zip(shards, (0.1, 1.0, 9.0), strict=True)):
            reply = shard.sample_share(planner.probe())
            planner.learn(index, replace(reply, mass=factor * reply.mass))
        plan = planner.plan()
        replies = [shard.sample_share(plan.request(s)) for s, shard in enumerate(shards)]
        batch = planner.join(plan, replies)
        items = items_of(batch)
        probability = draw_probability(plan, replies)
        importance = probability.min() / probability
        np.testing.assert_allclose(batch.importance.numpy(), importance, rtol=1e-6)
        n = len(values)
        exact.append(np.mean(values[items] / (n * probability)))
        naive.append(np.mean(values[items] * weights.sum() / (n * weights[items])))
    error = np.std(exact) / np.sqrt(len(exact))
    assert abs(np.mean(exact) - values.mean()) < 5 * error
    assert error < 0.02 * abs(values.mean())
    assert abs(np.mean(naive) - values.mean()) > 20 * np.std(naive) / np.sqrt(len(naive))


def test_priorities_return_to_their_shard(shards):
    source = LocalJointBatchSource(shards, CONFIG, BATCH, seed=0)
    batch = source.next()
    assert len({part.shard for part in batch.handles}) == 3
    items = items_of(batch)
    source.update_priorities(batch.handles, 100.0 + items.astype(np.float32))
    drawn = np.unique(items)
    np.testing.assert_allclose(weights_of(shards)[drawn], 100.0 + drawn)
    assert sum(shard.stats()["replay_stale_total"] for shard in shards) == 0
    with pytest.raises(ValueError, match=r"priorities has shape \(31,\), but there are 32 handles"):
        source.update_priorities(batch.handles, np.ones(31))


def test_a_batch_is_drawn_again_without_a_shard_that_lost_all(shards, vector_spec):
    """The successor is empty, sits behind the same handle, and takes no late priorities."""
    source = LocalJointBatchSource(shards, CONFIG, BATCH, seed=0)
    before = source.next()
    shards[0] = source._shards[0] = Replay(
        CONFIG.of_one_shard, TargetConfig(), vector_spec, seed=0, first_generation=10**18
    )
    batch = source.next()
    assert len(batch) == BATCH
    assert {part.shard for part in batch.handles} == {1, 2}
    source.update_priorities(before.handles, np.full(BATCH, 9.0))
    n_late = sum(len(part) for part in before.handles if part.shard == 0)
    assert shards[0].stats()["replay_stale_total"] == n_late > 0
    assert shards[0].sampler.total == 0.0


def test_handles_from_before_fit_no_slot_of_the_successor(make_segment, vector_spec):
    config = CONFIG.of_one_shard
    segment = make_segment(vector_spec, 20)
    old = Replay(config, TargetConfig(), vector_spec, seed=0)
    new = Replay(config, TargetConfig(), vector_spec, seed=0, first_generation=10**18)
    old.add([segment]), new.add([segment])
    handles = old.sample(8).handles
    assert new.update_priorities(handles, np.ones(8)) == 0
    assert new.stats()["replay_stale_total"] == 8
    assert new.update_priorities(new.sample(8).handles, np.ones(8)) == 8


def test_beta_follows_one_count_that_all_shards_keep(shards, vector_spec, tmp_path):
    config = replace(CONFIG, beta_start=0.0, beta_steps=10)
    source = LocalJointBatchSource(shards, config, BATCH, seed=0)
    weights = weights_of(shards)
    for number in range(12):
        batch = source.next()
        beta = min(number / 10, 1.0)
        ratio = weights[items_of(batch)].min() / weights[items_of(batch)]
        np.testing.assert_allclose(batch.importance.numpy(), ratio**beta, rtol=1e-6)
    assert {shard.counters.n_batches for shard in shards} == {12}
    again = []
    for index, shard in enumerate(shards):
        shard.save(tmp_path / str(index))
        again.append(Replay(CONFIG.of_one_shard, TargetConfig(), vector_spec, 9, shard=index))
        again[-1].load(tmp_path / str(index))
    resumed = LocalJointBatchSource(again, config, BATCH, seed=0)
    for _ in range(5):
        first, second = source.next(), resumed.next()
        np.testing.assert_array_equal(items_of(first), items_of(second))
        assert (first.obs == second.obs).all() and (first.importance == second.importance).all()


def test_actions_are_legal_where_a_shard_says_nothing_of_them(make_segment, vector_spec):
    made = []
    for shard in range(2):
        replay = Replay(CONFIG.of_one_shard, TargetConfig(), vector_spec, seed=0, shard=shard)
        replay.add([make_segment(vector_spec, 30, sequence=shard, with_legal=shard == 1)])
        made.append(replay)
    batch = LocalJointBatchSource(made, replace(CONFIG, num_shards=2), BATCH, seed=0).next()
    n_first = len(batch.handles[0])
    assert batch.legal[:n_first].all() and not batch.legal[n_first:].all()


def test_without_positions_it_is_said(vector_spec):
    empty = [Replay(CONFIG.of_one_shard, TargetConfig(), vector_spec, 0, shard=s) for s in range(2)]
    with pytest.raises(ValueError, match="none of 2 replay shards holds a trainable position"):
        LocalJointBatchSource(empty, CONFIG, BATCH, seed=0).next()
    assert JointTextSource(empty, 4, seed=0).next() is None


def test_text_is_uniform_over_the_prompts_of_all_shards(shards):
    source = JointTextSource(shards, 16, seed=0)
    n_prompts = [shard.text_positions() for shard in shards]
    assert n_prompts == [n // 2 for n in LENGTHS]
    counts = np.zeros(3)
    for _ in range(500):
        batch = source.next()
        assert len(batch.prompt) == len(batch.options) == len(batch.policy) == 16
        for prompt in batch.prompt:
            counts[int(prompt.split()[-1])] += 1
    np.testing.assert_allclose(
        counts / counts.sum(), np.array(n_prompts) / sum(n_prompts), atol=0.01
    )


def test_a_shard_gets_its_part_of_everything():
    config = ReplayConfig(capacity_mb=10, text_mb=4, min_positions=10, num_shards=4)
    shard = config.of_one_shard
    assert (shard.capacity_mb, shard.text_mb, shard.min_positions) == (2.5, 1.0, 3)
    assert shard.num_shards == 1 and shard.of_one_shard is shard
    with pytest.raises(ValueError, match="num_shards must be at least 1, got 0"):
        ReplayConfig(num_shards=0)


def test_a_shard_that_is_too_small_is_refused_with_what_would_do(vector_spec):
    targets = TargetConfig()
    config = ReplayConfig(capacity_mb=0.05, min_positions=400, num_shards=4)
    with pytest.raises(ValueError, match=r"in each of num_shards=4.* raise replay.capacity_mb to"):
        check_capacity(config, targets, vector_spec, 64, segment_steps=50)
    enough = replace(config, capacity_mb=0.075)
    check_capacity(enough, targets, vector_spec, 64, segment_steps=50)
    check_capacity(
        replace(enough, num_shards=1, capacity_mb=0.055), targets, vector_spec, 64, segment_steps=50
    )
