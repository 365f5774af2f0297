"""The fsspec driver behind a URI."""

from __future__ import annotations

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

# Stores whose folders are only parts of names, where making one would be asking for a bucket.
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"}


class StoreError(OSError):
    """The store can't be used; the message names the URI and what to do."""


def has_folders(fs: AbstractFileSystem) -> bool:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return not protocols & _WITHOUT_FOLDERS


def open_store(uri: str) -> tuple[AbstractFileSystem, str]:
    """The driver and the path there. Raises StoreError."""
    try:
        fs, path = url_to_fs(uri)
    except ImportError as error:
        protocol = uri.partition("://")[0]
        package = known_implementations.get(protocol, {"class": ""})["class"].partition(".")[0]
        raise StoreError(
            f"{uri} needs a driver that is not installed: pip install {package or protocol} "
            f"({error})"
        ) from error
    except ValueError as error:
        raise StoreError(f"{uri} is no URI that can be used: {error}") from error
    return fs, path
