"""How old sampled play is, and what happens to play that is too old."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import Replay, ReplayConfig, TargetConfig
from replay_service.storage import bytes_per_step
from replay_service.tally import N_BUCKETS, SampledRows, SampleTally

TARGETS = TargetConfig(unroll_steps=1, n_step=1)


def make_replay(spec, n_rows=200, **config):
    capacity_mb = (n_rows + 0.5) * bytes_per_step(spec) / 1e6
    settings = ReplayConfig(capacity_mb=capacity_mb, **{"min_positions": 1, **config})
    return Replay(settings, TARGETS, spec, seed=0)


def played_with(segment, version, newest=None):
    newest = version if newest is None else newest
    header = replace(segment.header, weight_version_min=version, weight_version_max=newest)
    return replace(segment, header=header)


def sampled_versions(replay):
    return set(replay.sample(256).weight_version.tolist())


def test_play_that_lags_too_far_behind_is_sampled_no_more(vector_spec, make_segment):
    replay = make_replay(vector_spec, max_weight_lag=10)
    for sequence, version in enumerate((0, 5, 12)):
        segment = played_with(make_segment(vector_spec, 4, sequence=sequence), version)
        assert replay.add([segment]).n_positions == 4
    assert sampled_versions(replay) == {5, 12}
    assert replay.n_positions == 8
    late = replay.add([played_with(make_segment(vector_spec, 4, sequence=9), 1)])
    assert late.n_positions == 0
    stats = replay.stats()
    assert stats["replay_too_old_masked_total"] == 4
    assert stats["replay_too_old_dropped_total"] == 1


def test_a_segment_counts_by_its_oldest_and_arrives_by_its_newest_version(
    vector_spec, make_segment
):
    replay = make_replay(vector_spec, max_weight_lag=10)
    replay.add([played_with(make_segment(vector_spec, 4, sequence=0), 20)])
    mixed = played_with(make_segment(vector_spec, 4, sequence=1), 5, newest=15)
    assert replay.add([mixed]).n_positions == 4
    assert sampled_versions(replay) == {20}


def test_learning_keeps_something_to_sample(vector_spec, make_segment):
    replay = make_replay(vector_spec, max_weight_lag=10, min_positions=6)
    for sequence, version in enumerate((0, 1, 100)):
        replay.add([played_with(make_segment(vector_spec, 4, sequence=sequence), version)])
    assert replay.n_positions == 8 and sampled_versions(replay) == {1, 100}
    replay.add([played_with(make_segment(vector_spec, 4, sequence=3), 100)])
    assert replay.n_positions == 8 and sampled_versions(replay) == {100}


def test_a_late_priority_does_not_bring_masked_play_back(vector_spec, make_segment):
    replay = make_replay(vector_spec, max_weight_lag=10)
    replay.add([played_with(make_segment(vector_spec, 4, sequence=0), 0)])
    handles = replay.sample(4).handles
    replay.add([played_with(make_segment(vector_spec, 4, sequence=1), 50)])
    assert replay.update_priorities(handles, np.full(4, 9.0)) == 0
    assert sampled_versions(replay) == {50}


def test_masks_survive_a_restart(vector_spec, make_segment, tmp_path):
    replay = make_replay(vector_spec, max_weight_lag=10)
    for sequence, version in enumerate((0, 8, 12)):
        replay.add([played_with(make_segment(vector_spec, 4, sequence=sequence), version)])
    replay.save(tmp_path)
    again = make_replay(vector_spec, max_weight_lag=10)
    again.load(tmp_path)
    assert again.n_positions == 8 and sampled_versions(again) == {8, 12}
    again.add([played_with(make_segment(vector_spec, 4, sequence=3), 20)])
    assert sampled_versions(again) == {12, 20}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 30)), min_size=1, max_size=40))
def test_positions_are_those_that_are_young_enough(vector_spec, make_segment, arrivals):
    """Against a list of what was kept; the ring is small, so that it evicts as well."""
    max_lag, newest, n_steps = 10, -1, {}
    replay = make_replay(vector_spec, n_rows=60, max_weight_lag=max_lag)
    for sequence, (length, version) in enumerate(arrivals):
        replay.add([played_with(make_segment(vector_spec, length, sequence=sequence), version)])
        if newest - version <= max_lag:
            newest = max(newest, version)
            n_steps[sequence] = (length, version)
        live = {stored.segment_id[2] for stored in replay.ring.live}
        n_steps = {key: value for key, value in n_steps.items() if key in live}
        young = [n for n, version in n_steps.values() if newest - version <= max_lag]
        assert replay.n_positions == sum(young)
        assert int(np.count_nonzero(replay.sampler.tree.leaves)) == sum(young)


def test_whoever_asks_for_batches_may_know_of_newer_weights(vector_spec, make_segment):
    replay = make_replay(vector_spec, max_weight_lag=10, min_positions=1)
    for sequence, version in enumerate((0, 8)):
        replay.add([played_with(make_segment(vector_spec, 4, sequence=sequence), version)])
    assert replay.stats()["replay_lag_max"] == 0
    assert set(replay.sample(64, newest_version=6).weight_version.tolist()) == {0, 8}
    assert replay.stats()["replay_lag_max"] == 8, "versions only grow"
    assert set(replay.sample(64, newest_version=14).weight_version.tolist()) == {8}
    stats = replay.stats()
    assert stats["replay_too_old_masked_total"] == 4
    assert stats["replay_lag_upto_8"] == 64


def test_lags_fall_into_buckets_by_powers_of_two():
    tally, newest = SampleTally(), 100_000
    lags = torch.tensor([-5, 0, 1, 2, 3, 4, 5, 8, 9, 1 << 14, 1 << 15])
    tally.count(SampledRows(torch.arange(len(lags)), newest - lags, newest - lags, newest))
    stats = tally.stats()
    counts = [stats[f"replay_lag_upto_{1 << power}"] for power in range(N_BUCKETS - 1)]
    assert counts[:5] == [3, 1, 2, 2, 1] and counts[14] == 1
    assert stats["replay_lag_beyond"] == 1 and stats["replay_lag_max"] == 1 << 15
    assert stats["replay_lag_p50"] == 4
    assert tally.stats()["replay_lag_upto_1"] == 0


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="max_weight_lag must not be negative, got -1"):
        ReplayConfig(max_weight_lag=-1)
