"""Which run may write below a URI: one token in the run directory and the same in the store."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

from launch.config import Config, ConfigError
from launch.control.remote_store import RemoteStore
from launch.control.resume import Resume
from launch.control.store_driver import StoreError

TOKEN_FILE = ".store-token"


def claim_store(path: Path, config: Config, resume: Resume | None) -> RemoteStore | None:
    """The store of `control.checkpoint_uri`, now this run's; None where there is no such setting.

    A store with checkpoints of another run is taken over only by who goes on from one of them.
    Raises ConfigError. The run directory `path` must be locked.
    """
    uri = config.control.checkpoint_uri
    if not uri:
        return None
    store = RemoteStore(uri, _token(path))
    try:
        token, place = store.writer()
        if token not in ("", _token(path)) and not _goes_on_from(store, resume) and store.names():
            raise ConfigError(
                f"control.checkpoint_uri {uri} holds checkpoints of another run ({place}), and "
                f"{path} does not go on from them; choose another URI, or go on from there with "
                f"--resume {uri} and a new --run-dir"
            )
        store.claim(f"{path.resolve()} on {socket.gethostname()}")
    except StoreError as error:
        raise ConfigError(f"control.checkpoint_uri: {error}") from error
    return store


def _goes_on_from(store: RemoteStore, resume: Resume | None) -> bool:
    return resume is not None and resume.origin.startswith(f"{store.uri}/")


def _token(path: Path) -> str:
    """Of the run in the directory `path`, which keeps it for as long as it is there."""
    file = path / TOKEN_FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    return file.read_text().strip()
