"""How a run ends that does not end by itself: what is saved, what is said, which exit code."""

from __future__ import annotations

import contextlib
import sys
import traceback

from launch.config import Config
from launch.control.call_book import RunFailed
from launch.control.controller import Controller
from launch.control.reporter import Reporter
from launch.control.resume import is_path


def end_after_failure(controller: Controller, reporter: Reporter, failure: Exception) -> None:
    """Says what happened and saves what can be saved; the run's children must still be there.

    A failure that nobody foresaw is printed with its traceback, for the report of the bug.
    """
    reporter.event("failed", cause=f"{type(failure).__name__}: {failure}")
    if not isinstance(failure, RunFailed):
        traceback.print_exception(failure)
    sys.stderr.write(f"error: {failure or type(failure).__name__}\n")
    try:
        rescue(controller, failure)
    except Exception as again:  # of whatever kind: the children are to be ended in any case
        cause = str(again).partition("\n")[0] or type(again).__name__
        if controller.is_out_of_time:
            cause += "; control.stop_budget_s is used up"
        reporter.event("not_rescued", cause=cause)
        sys.stderr.write(f"no checkpoint was made of the run as it is: {cause}\n")


def rescue(controller: Controller, failure: Exception) -> None:
    """A checkpoint after `failure` within the stop budget; raises if there can't be one.

    Answers in flight are counted as far as possible, since what failed once may fail again.
    """
    if isinstance(failure, RunFailed) and not failure.is_state_sound:
        raise RunFailed("what it learned last is in doubt; older checkpoints are as they were")
    if not controller.has_begun:
        raise RunFailed("it had not begun yet")
    n_before = controller.n_moving() + 1
    while controller.n_moving() < n_before:  # an error takes at least its own call with it
        n_before = controller.n_moving()
        with contextlib.suppress(Exception):
            controller.drain(is_last=True)
    controller.checkpoint("rescued")


def how_to_go_on(config: Config) -> str:
    """What to type to continue a stopped run."""
    if config.resume == "never" or is_path(config.resume):
        return "the same command with --resume auto and this --run-dir goes on"
    return "the same command goes on"
