"""A bar on a terminal, and few lines elsewhere."""

import io

import pytest
from rich.console import Console

from launch.monitoring.work_progress import LINES, work_progress


def shown(*, terminal: bool, total: int, step: int) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None)
    with work_progress("[prior] steps", total, console) as progress:
        progress.say("[prior] planned 1-1")
        for n_done in range(step, total + 1, step):
            progress.done(n_done, f"loss {n_done}")
    return stream.getvalue()


@pytest.mark.parametrize(("total", "step"), [(100, 1), (100, 25), (7, 1), (4, 1)])
def test_elsewhere_there_are_few_lines_and_the_last_is_the_end(total, step):
    lines = shown(terminal=False, total=total, step=step).splitlines()
    assert lines[0] == "[prior] planned 1-1"
    assert 2 <= len(lines) - 1 <= LINES
    assert lines[-1] == f"[prior] steps: {total} of {total}, loss {total}"


def test_a_terminal_shows_a_bar_that_goes():
    text = shown(terminal=True, total=100, step=10)
    assert "[prior] planned 1-1" in text and "[prior] steps" in text
    assert "100/100" in text and "loss 100" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"
    assert "of 100, loss" not in text


def test_work_that_fails_leaves_the_terminal_as_it_was():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    with pytest.raises(RuntimeError), work_progress("steps", 3, console) as progress:
        progress.done(1)
        raise RuntimeError("not finite")
    assert "\x1b[?25h" in stream.getvalue()
