"""What the overlap benchmark makes of a run's metric records; no run is started."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are scripts, not a package

from benchmarks.measured_span import Span, steady_span
from benchmarks.overlap import parse_options, ratio, report_row, run_arguments, write_csv

CELL = (4, 20)


def record(timestamp: float, step: int, update: int, **others: object) -> dict[str, object]:
    return {"timestamp": timestamp, "global_step": step, "update": update, **others}


def run_records(*, n: int = 21, steps_per_sec: int = 10) -> list[dict[str, object]]:
    """Three records before learning, `n` of both at 10 steps/s, three after the last step."""
    before = [record(t, 10 * t, 0) for t in range(3)]
    during = [
        record(
            3.0 + t,
            30 + steps_per_sec * t,
            8 + 5 * t,
            **{
                "time_percent/learner/compute": 100.0 if t % 2 else 60.0,
                "time_percent/learner/publish": 2.0,
                "wait_percent/learner/sample": 3.0,
                "wait_percent/learner/limiter": 77.0,  # cut off at 0 in each window: not used
                "time_percent/env_actor/env": 10.0,
                "time_percent/env_actor/search": 20.0,
                "time_percent/env_actor/prior_ask": 1.0,
                "time_percent/env_actor/pull": 1.0,
                "wait_percent/env_actor/prior": 8.0,
            },
        )
        for t in range(n)
    ]
    last_step = during[-1]["global_step"] + steps_per_sec
    after = [record(3.0 + n + t, last_step, 8 + 5 * n, replay_fill_rate=0.25) for t in range(3)]
    return before + during + after


def test_the_span_begins_with_learning_drops_warm_up_and_ends_with_the_last_step():
    span = steady_span(run_records(), warm_up=0.0)
    assert (span.records[0]["timestamp"], span.records[-1]["timestamp"]) == (3.0, 23.0)
    span = steady_span(run_records(), warm_up=0.3)
    assert (span.records[0]["timestamp"], span.records[-1]["timestamp"]) == (9.0, 23.0)
    assert span.seconds == 14.0


@pytest.mark.parametrize(("n", "warm_up"), [(0, 0.0), (1, 0.0), (5, 0.0), (7, 0.3)])
def test_too_few_records_are_refused(n, warm_up):
    with pytest.raises(ValueError, match="let the run last longer"):
        steady_span(run_records(n=n) if n else [], warm_up)
    assert len(steady_span(run_records(n=n + 10), warm_up).records) > 5


@pytest.mark.parametrize("warm_up", [-0.1, 1.0])
def test_a_warm_up_that_leaves_nothing_is_refused(warm_up):
    with pytest.raises(ValueError, match="warm_up"):
        steady_span(run_records(), warm_up)


def test_rates_are_counter_differences_not_means_of_rates():
    """A long window counts for its length, however few records fall into it."""
    span = Span((record(0, 0, 0), record(1, 100, 1), record(11, 110, 2)))
    assert span.rate("global_step") == 10.0
    assert span.rate("update") == pytest.approx(2 / 11)


def test_means_weigh_windows_by_length_and_skip_missing_values():
    span = Span(
        (
            record(0, 0, 0, busy=999.0),  # its window lies before the span
            record(1, 0, 0, busy=80.0, work=1.0),
            record(4, 0, 0, busy=40.0, work=2.0),
            record(9, 0, 0, busy=None),
        )
    )
    assert span.mean("busy") == pytest.approx((80 + 3 * 40) / 4)
    assert span.mean("busy", "work") == pytest.approx((80 + 6 * 40) / 7)
    assert math.isnan(span.mean("absent"))


def test_a_row_says_how_fast_how_busy_and_who_waits_for_whom():
    row = report_row("overlapped", CELL, run_records(), warm_up=0.3)
    assert row.steps_per_sec_mean == pytest.approx(10.0)
    assert row.updates_per_sec_mean == pytest.approx(5.0)
    assert row.learner_busy_percent == pytest.approx(82.0)
    assert row.learner_waits_for_replay_percent == pytest.approx(3.0)
    assert row.learner_waits_for_actors_percent == pytest.approx(15.0)
    assert row.actor_busy_percent == pytest.approx(32.0)
    assert row.actors_wait_for_prior_percent == pytest.approx(8.0)
    assert row.actors_wait_for_learner_percent == pytest.approx(60.0)
    assert row.replay_fill_final == 0.25
    assert row.duration_sec == pytest.approx(14.0)


def test_csv_has_the_agreed_columns_and_ratios_compare_modes(tmp_path):
    on_gpu = [{**r, "gpu_util_mean_window": 73.5} for r in run_records(steps_per_sec=15)]
    rows = [
        report_row("alternating", CELL, run_records(steps_per_sec=10), 0.3),
        report_row("overlapped", CELL, on_gpu, 0.3),
    ]
    write_csv(tmp_path / "overlap.csv", rows)
    with (tmp_path / "overlap.csv").open() as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    agreed = (
        "mode,num_envs,rollout,steps_per_sec_mean,updates_per_sec_mean,replay_fill_final,"
        "gpu_util_mean_window,duration_sec"
    )
    assert reader.fieldnames[:8] == agreed.split(",")
    assert [line["gpu_util_mean_window"] for line in lines] == ["", "73.5"]
    assert [line["mode"] for line in lines] == ["alternating", "overlapped"]
    assert float(lines[1]["steps_per_sec_mean"]) == pytest.approx(15.0)
    assert ratio(rows, CELL, "steps_per_sec_mean") == pytest.approx(1.5)


def test_the_modes_of_a_cell_differ_in_one_setting():
    matrix = ["--num-envs", "8", "16", "--rollout", "40", "--warm-up-fraction", "0.5"]
    options = parse_options(["--preset", "mario-quick", *matrix, "--", "--simulations=4"])
    assert (options.num_envs, options.rollout, options.warm_up_fraction) == ([8, 16], [40], 0.5)
    alternating, overlapped = (
        set(run_arguments(options, (8, 40), mode)) for mode in ("alternating", "overlapped")
    )
    assert alternating ^ overlapped == {
        "--schedule.off-policy-degree=0",
        "--schedule.off-policy-degree=-1",
    }
    assert {"--envs-per-actor=4", "--acting.segment-length=40", "--simulations=4"} <= alternating


@pytest.mark.parametrize(
    "words",
    [
        ["--num-envs", "7"],
        ["--num-envs", "0"],
        ["--rollout", "0"],
        ["--preset", "nope"],
        ["--warm-up-fraction", "1"],
    ],
)
def test_bad_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as refused:
        parse_options(["--preset", "mario-quick", *words])
    assert refused.value.code == 2
