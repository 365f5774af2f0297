"""One consistent cut of a run: what is saved together and comes back together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.control.call_book import CallBook, RunFailed
from launch.control.checkpoint import CheckpointStore
from launch.control.fleet import Fleet
from launch.control.progress import Progress
from launch.control.rate_limiter import RateLimiter
from launch.control.resume import Resume
from launch.control.runtime import CallFailed, Child
from launch.control.shards import ReplayShards
from learner.partial_restore import FileMatch


def save_cut(
    calls: CallBook,
    store: CheckpointStore,
    fleet: Fleet,
    progress: Progress,
    limiter: RateLimiter,
    shards: ReplayShards,
    *,
    reason: str,
    on_failure: Callable[[CallFailed], None],
) -> tuple[Path, float]:
    """Saves replay, learner, language learner and counters; nothing may be moving meanwhile.

    A shard of replay that died goes to `on_failure`; if the run survives that, the checkpoint is
    written without it. Returns the checkpoint's folder and the seconds it took. OSError where
    something can't be written: nothing is lost then but this checkpoint.
    """
    started = calls.now()
    folder = store.begin(progress.updates, progress.env_steps)
    older = store.newest()
    for failure in shards.save(folder / "replay", older and older / "replay"):
        if failure.raised:
            raise OSError(str(failure)) from failure
        on_failure(failure)
        shutil.rmtree(Path(failure.call.args[0]), ignore_errors=True)
    _save(calls, fleet.learner, folder / "learner")
    if fleet.language_learner is not None:
        _save(calls, fleet.language_learner, folder / "language")
    counters = {
        "progress": progress.state(),
        "limiter": limiter.state(),
        "replay": shards.state(),
        "incarnations": {str(index): count for index, count in fleet.incarnations.items()},
    }
    is_best = progress.is_new_best
    path = store.commit(folder, counters, reason=reason, is_best=is_best)
    progress.is_new_best = False
    return path, calls.now() - started


def _save(calls: CallBook, child: Child, folder: Path) -> None:
    """RunFailed if the child dies of it, OSError if it only can't write."""
    try:
        calls.ask(child, "save", folder)
    except RunFailed as error:
        failure = error.__cause__
        if isinstance(failure, CallFailed) and failure.raised:
            raise OSError(str(failure)) from failure
        raise


def restore_children(
    calls: CallBook, fleet: Fleet, shards: ReplayShards, resume: Resume
) -> Mapping[str, FileMatch] | None:
    """Hands a checkpoint's parts to the children; replay is loaded once.

    Returns what became of the learner's keys if the resume is relaxed.
    """
    folder, matches = resume.folder, None
    if resume.keeps_replay:
        shards.load(folder / "replay", resume.counters.get("replay"))
    if resume.relaxed:
        matches = calls.ask(fleet.learner, "load_matching", folder / "learner")
    else:
        calls.ask(fleet.learner, "load", folder / "learner")
    if fleet.language_learner is not None and resume.keeps_adapter:
        calls.ask(fleet.language_learner, "load", folder / "language")
    return matches
