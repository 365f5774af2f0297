"""From a checkpoint in a remote store to one that a run can go on from, in its run directory."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from launch.config import Config, ConfigError
from launch.control.checkpoint import CheckpointError, CheckpointStore, verify
from launch.control.resume import OWN_COPY, Elsewhere, Resume, checked
from launch.control.run_search import CHECKPOINTS_FOLDER
from launch.control.store_driver import StoreError

FETCHED_FOLDER = ".fetched"

log = logging.getLogger(__name__)


def fetch(source: Elsewhere, run_dir: Path, config: Config) -> Resume:
    """The first of `source` that arrives as its manifest says; the run directory must be locked.

    A copy of the run's own becomes the newest of its checkpoints; what belongs to another run lies
    in FETCHED_FOLDER while this one goes on. Raises ConfigError.
    """
    staging = run_dir / FETCHED_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    for name in source.names:
        try:
            folder = source.store.fetch(name, staging)
            verify(folder)
        except (CheckpointError, StoreError) as error:
            log.warning("[train] skipping checkpoint %s: %s", name, error)
            shutil.rmtree(staging / name, ignore_errors=True)
            continue
        origin = source.store.uri_of(name)
        checked(folder, source.found, config, origin)  # refused before it is taken over
        if source.found == OWN_COPY:
            store = CheckpointStore(run_dir / CHECKPOINTS_FOLDER, config.control.keep_checkpoints)
            folder = store.adopt(folder)
        return checked(folder, source.found, config, origin)
    raise ConfigError(
        f"none of the {len(source.names)} checkpoints in {source.store.uri} can be used (see the "
        "warnings above); choose another, or remove them to start from nothing"
    )
