"""The table on a terminal, the lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from launch.monitoring.live_table import LINE_PERIOD_S, LiveTable, print_summary, who_waits

METRICS = {
    "global_step": 12_345,
    "update": 678,
    "avg_return": 3.25,
    "env_max_x_pos": 722,
    "env_steps_per_sec": 21.5,
    "replay_fill_rate": 0.125,
    "loss_total": None,
    "wait_percent/learner/sample": 61.0,
    "wait_percent/env_actor_0/prior": 12.0,
    "wait_percent/env_actor_1/prior": 0.1,
}


def make_console(terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=width, color_system=None), stream


def test_who_waits_names_the_longest_first() -> None:
    assert who_waits(METRICS) == "learner waits for sample 61%, env_actor_0 waits for prior 12%"
    assert who_waits({}) == "nobody for long"


def test_plain_lines_are_whole_and_throttled() -> None:
    console, stream = make_console(terminal=False)
    now = [0.0]
    with LiveTable("run", console, clock=lambda: now[0]) as table:
        table.update(METRICS)
        now[0] += LINE_PERIOD_S / 2
        table.update(METRICS)
        now[0] += LINE_PERIOD_S
        table.update({})
        table.say("[train] saved [checkpoint]")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, "the second update came too early"
    assert lines[0].startswith("[train] env steps 12,345 | updates 678 | return 3.2 |")
    assert lines[0].endswith("| learner waits for sample 61%")
    assert lines[2] == "[train] saved [checkpoint]"


def test_shards_are_shown_where_there_are_several() -> None:
    for metrics in (METRICS, {**METRICS, "replay_shards_alive": 3.0, "replay_shards_lost": 1.0}):
        console, stream = make_console(terminal=False)
        print_summary(metrics, "run", console)
        assert ("lost so far" in stream.getvalue()) == ("replay_shards_alive" in metrics)


def test_live_table_redraws_on_a_terminal() -> None:
    console, stream = make_console(terminal=True)
    with LiveTable("mario-quick", console) as table:
        table.update(METRICS)
        table.update({**METRICS, "avg_return": 4.5})
    text = stream.getvalue()
    assert "12,345" in text and "3.2" in text and "4.5" in text and "12%" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"


def test_long_work_is_shown_in_place_of_the_waits_on_a_terminal_only() -> None:
    for terminal in (True, False):
        console, stream = make_console(terminal)
        with LiveTable("run", console) as table:
            table.update(METRICS)
            table.busy("replay-0 saves")
            table.busy("replay-0 saves")
            assert ("replay-0 saves" in stream.getvalue()) == terminal
            length = len(stream.getvalue())
            table.busy("")
            assert (len(stream.getvalue()) > length) == terminal


def test_summary_fits_80_columns_and_skips_empty_rows() -> None:
    console, stream = make_console(terminal=False)
    print_summary({**METRICS, "prior_cache_hit_rate": None}, "mario-quick", console)
    text = stream.getvalue()
    assert "12,345" in text and "…" not in text
    assert "LLM prior" not in text and "loss" not in text
    assert max(map(len, text.splitlines())) <= 80
