"""Times by stage, tallies of batches, and the line for the log."""

import pytest
import torch

from replay_service import Replay, ReplayConfig, TargetConfig, stat_line
from replay_service.storage import bytes_per_row
from replay_service.tally import MAX_PENDING, N_RECENT, SampledRows, SampleTally, StageTimer


def test_the_line_is_made_of_what_stats_returned(make_segment, vector_spec):
    capacity_mb = 10.5 * bytes_per_row(vector_spec) / 1e6
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
