"""What a run does that starts out too big for its machine: one setting smaller, and again.

Only at start-up and in the first updates, and only with `--auto-memory true`. Each child that may
run out has a setting that shrinks it and changes as little as possible of what is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from launch.config import Config
from launch.control.call_book import RunFailed
from launch.control.progress import Progress
from launch.control.runtime import MEMORY_SETTINGS, CallFailed
from launch.control.stored_settings import read_settings_file

FIRST_UPDATES = 200  # a run that got further fits its machine; what fails then is something else


class OutOfMemory(RunFailed):
    """A child has too little memory, so early that a smaller setting is worth a new start."""

    def __init__(self, failure: CallFailed) -> None:
        super().__init__(str(failure))
        self.role = failure.call.child.role


@dataclass(frozen=True, slots=True)
class Rung:
    """The settings to start again with, and what is different in them."""

    config: Config
    change: str


def refuse_starved(config: Config, progress: Progress, failure: CallFailed) -> None:
    """Raises OutOfMemory where a successor of the same size would fail in the same way."""
    is_early = progress.updates - progress.updates_restored < FIRST_UPDATES
    is_starved = failure.is_out_of_memory and failure.call.child.role in MEMORY_SETTINGS
    if config.control.auto_memory and is_early and is_starved:
        raise OutOfMemory(failure)


def starved_role(config: Config, progress: Progress, failure: BaseException) -> str | None:
    """Whose lack of memory ended the run, None if that was not it."""
    for error in _chain(failure):
        if isinstance(error, OutOfMemory):
            return error.role
        if isinstance(error, CallFailed):
            try:
                refuse_starved(config, progress, error)
            except OutOfMemory as starved:
                return starved.role
    return None


def next_rung(config: Config, role: str) -> Rung | None:
    """The next smaller settings for `role`, None at the foot of the ladder.

    Learner: twice the parts, down to one sample a part (the same gradient, more time), then half
    the batch. Env actor: half the environments.
    """
    learner, acting = config.learner, config.acting
    if role == "env_actor":
        if acting.envs_per_actor == 1:
            return None
        n_envs = acting.envs_per_actor // 2
        change = f"acting.envs_per_actor {acting.envs_per_actor} -> {n_envs}"
        return Rung(replace(config, acting=replace(acting, envs_per_actor=n_envs)), change)
    if learner.accumulate < learner.batch_size:
        n_parts = min(2 * learner.accumulate, learner.batch_size)
        change = f"learner.accumulate {learner.accumulate} -> {n_parts}"
        return Rung(replace(config, learner=replace(learner, accumulate=n_parts)), change)
    n_samples = learner.batch_size // 2
    if n_samples < learner.n_devices:
        return None
    smaller = replace(learner, batch_size=n_samples, accumulate=n_samples)
    change = f"learner.batch_size {learner.batch_size} -> {n_samples}"
    return Rung(replace(config, learner=smaller), change)


def with_saved_rung(config: Config, config_file: Path) -> Config:
    """`config` as far down the ladder as the run in whose folder `config_file` is already went."""
    if not (config.control.auto_memory and config_file.is_file()):
        return config
    try:
        saved = read_settings_file(config_file).config
        if not saved.control.auto_memory:
            return config
        learner = replace(
            config.learner,
            batch_size=min(saved.learner.batch_size, config.learner.batch_size),
            accumulate=max(saved.learner.accumulate, config.learner.accumulate),
        )
        n_envs = min(saved.acting.envs_per_actor, config.acting.envs_per_actor)
        acting = replace(config.acting, envs_per_actor=n_envs)
    except ValueError:
        return config  # older than the ladder, or damaged: whoever opens the run says which
    return replace(config, learner=learner, acting=acting)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
