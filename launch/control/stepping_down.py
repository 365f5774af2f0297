"""From a run that ran out of memory to the same run with smaller settings."""

from __future__ import annotations

from dataclasses import replace

from launch.config import Config
from launch.control.memory_ladder import next_rung, starved_role
from launch.control.progress import Progress
from launch.control.reporter import Reporter
from launch.control.run_directory import RunDirectory, open_run


class StepDown(Exception):
    """The run should start again, in its directory, with these settings."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


def step_down(
    config: Config, progress: Progress, reporter: Reporter, failure: BaseException
) -> None:
    """Raises StepDown, logged, if `failure` was a lack of memory that smaller settings may mend."""
    role = starved_role(config, progress, failure)
    if role is None:
        return
    rung = next_rung(config, role)
    if rung is not None:
        reporter.event("memory_step_down", role=role, change=rung.change, cause=str(failure)[-400:])
        raise StepDown(rung.config) from failure


def reopen(run: RunDirectory, preset: str, config: Config) -> RunDirectory:
    """The directory again, once closed; the settings saved there are now those of `config`."""
    has_checkpoint = run.checkpoints.latest() is not None
    # An explicit source was what the run began with; what it has saved since is further.
    resume = "auto" if has_checkpoint or config.resume in ("never", "must") else config.resume
    return open_run(preset, replace(config, run_dir=run.path, resume=resume))
