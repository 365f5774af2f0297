"""Times by stage, tallies of batches, and the line for the log."""

import pytest
import torch

from replay_service import Replay, ReplayConfig, TargetConfig, merge_stats, stat_line
from replay_service.storage import bytes_per_step
from replay_service.tally import MAX_PENDING, N_RECENT, SampledRows, SampleTally, StageTimer


def test_the_line_is_made_of_what_stats_returned(make_segment, vector_spec):
    capacity_mb = 10.5 * bytes_per_step(vector_spec) / 1e6
    config = ReplayConfig(capacity_mb=capacity_mb, min_positions=1, uniform=True)
    replay = Replay(config, TargetConfig(unroll_steps=1, n_step=1), vector_spec, seed=0)
    replay.add([make_segment(vector_spec, 4)])
    assert stat_line(replay.stats()) == "[replay][stat] fill=50.0% unique=0.0% avg_unique=0.0%"
    replay.sample(16), replay.sample(4)
    stats = replay.stats()
    assert stats["replay_last_unique_ratio"] == 1.0, "uniform, one stratum a position"
    assert stat_line(stats) == "[replay][stat] fill=50.0% unique=100.0% avg_unique=62.5%"


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_a_sample_is_timed_by_stage(make_segment, vector_spec, engine):
    config = ReplayConfig(capacity_mb=1, min_positions=1, engine=engine)
    replay = Replay(config, TargetConfig(), vector_spec, seed=0)
    assert replay.stats()["replay_sample_ms"] == 0.0
    replay.add([make_segment(vector_spec, 30)])
    replay.sample(8)
    stats = replay.stats()
    stages = [stats[f"replay_{name}_ms"] for name in ("draw", "gather", "targets")]
    assert min(stages) > 0.0
    assert sum(stages) == pytest.approx(stats["replay_sample_ms"])


def test_a_timer_keeps_the_newest_pass():
    timer = StageTimer()
    for stages in (("a", "b"), ("b",)):
        timer.start()
        for stage in stages:
            timer.mark(stage)
    assert set(timer.read_ms()) == {"b"}


def test_tallies_do_not_depend_on_when_they_are_read():
    """Batches are counted some at a time; sizes change in between."""
    generator = torch.Generator().manual_seed(0)
    eager, lazy = SampleTally(), SampleTally()
    eager_sum = 0.0
    for index in range(3 * MAX_PENDING):
        n_rows = 7 if index % 41 < 30 else 50
        slots = torch.randint(0, 40, (n_rows,), generator=generator).sort().values
        played = torch.randint(0, 900, (n_rows,), generator=generator)
        batch = SampledRows(slots, played, played + (slots % 2), newest=800)
        for tally in (eager, lazy):
            tally.count(batch)
        last, total = eager.take_unique()
        assert last == pytest.approx(len(set(slots.tolist())) / n_rows)
        eager_sum += total
    assert lazy.take_unique() == (pytest.approx(last), pytest.approx(eager_sum))
    assert lazy.stats() == eager.stats()
    share = float((slots % 2).float().mean())
    assert lazy.stats()["replay_reanalysed_share"] == pytest.approx(share)


def test_recent_lags_forget_old_ones():
    tally = SampleTally()
    for newest in (1_000, 10):
        for _ in range(2 + N_RECENT // 64):
            rows = torch.zeros(64, dtype=torch.int64)
            tally.count(SampledRows(rows, rows, rows, newest))
    assert tally.stats()["replay_lag_p99"] == 10
    rows = torch.zeros(3 * N_RECENT, dtype=torch.int64)
    tally.count(SampledRows(rows, rows, rows, 20))
    assert tally.stats()["replay_lag_p50"] == 20


def make_shard_stats(make_segment, vector_spec, n_steps: int) -> dict[str, float]:
    config = ReplayConfig(capacity_mb=1, min_positions=1)
    replay = Replay(config, TargetConfig(), vector_spec, seed=0)
    replay.add([make_segment(vector_spec, n_steps, sequence=n_steps)])
    replay.sample(8)
    return replay.stats()


def test_figures_of_one_shard_are_its_own(make_segment, vector_spec):
    stats = make_shard_stats(make_segment, vector_spec, 30)
    assert merge_stats([stats]) == stats
    assert merge_stats([{}, {}]) == {}


def test_figures_of_shards_become_those_of_all(make_segment, vector_spec):
    small, large = (make_shard_stats(make_segment, vector_spec, n) for n in (10, 30))
    merged = merge_stats([small, large])
    assert set(merged) == set(small)
    assert merged["replay_positions"] == merged["replay_push_total"] == 40
    assert merged["replay_bytes"] == small["replay_bytes"] + large["replay_bytes"]
    mean = (10 * small["replay_priority_mean"] + 30 * large["replay_priority_mean"]) / 40
    assert merged["replay_priority_mean"] == pytest.approx(mean)
    shares = [stats["replay_mass"] / merged["replay_mass"] for stats in (small, large)]
    unique = [stats["replay_avg_unique_ratio"] for stats in (small, large)]
    expected = shares[0] * unique[0] + shares[1] * unique[1]
    assert merged["replay_avg_unique_ratio"] == pytest.approx(expected)
    assert merged["replay_sample_total"] == 1  # the same batch
    assert merged["replay_sample_ms"] == max(small["replay_sample_ms"], large["replay_sample_ms"])
    fills = small["replay_fill_rate"] + large["replay_fill_rate"]
    assert merged["replay_fill_rate"] == pytest.approx(fills / 2)
    assert merge_stats([small, {}])["replay_fill_rate"] == small["replay_fill_rate"] / 2
