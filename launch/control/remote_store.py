"""Checkpoints in a store that fsspec reaches: a bucket, a shared folder, memory.

    URI/objects/SHA-256                     contents of files, each there once
    URI/checkpoints/NAME/manifest.json      the checkpoint's own manifest, written when all is there
    URI/LATEST, URI/BEST                    a NAME
    URI/WRITER                              the token of the run that may write, and where it runs

Nothing here relies on renames or on whole writes: what was cut off is found by size or checksum.
One run writes below one URI, from one thread; others may read meanwhile. A run that lost its
machine can't give WRITER back, so whoever goes on from a store takes it over, and the one before
finds out at its next upload.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from launch.control.checkpoint import BACKUP_SUFFIX, BEST, COUNTERS, LATEST, MANIFEST
from launch.control.manifest import (
    CheckpointError,
    FileEntry,
    checked_inventory,
    is_checkpoint_name,
)
from launch.control.run_search import CHECKPOINTS_FOLDER
from launch.control.store_driver import StoreError, has_folders, open_store

OBJECTS_FOLDER = "objects"
WRITER = "WRITER"
LARGEST_MANIFEST_BYTES = 256 << 20
_LARGEST_POINTER_BYTES = 1_000
_CHUNK_BYTES = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_uri(text: str) -> bool:
    return "://" in text


class RemoteStore:
    """What is below one URI, or one path of a shared folder.

    Whatever a driver raises arrives as StoreError.
    """

    def __init__(self, uri: str, token: str = "") -> None:
        """Contacts nothing yet. StoreError if there is no driver for this kind of URI.

        token: of the run that uploads; "" where nothing but reading is meant
        """
        self.uri = uri if uri.endswith("://") else uri.rstrip("/")
        self._token = token
        self._fs, path = open_store(self.uri)
        self._base = path.rstrip("/")
        self._turns = count(1)
        self._read_at: dict[str, int] = {}  # by checksum, the turn of its upload or last reading

    def check_writable(self) -> None:
        """Writes a few bytes, reads them back and removes them. Raises StoreError."""
        with self._told("written"):
            probe = f"{self._base}/.probe-{uuid.uuid4().hex}"
            self._write(probe, b"can this be written?")
            self._fs.rm_file(probe)

    # ------------------------------------------------------------------ who may write

    def writer(self) -> tuple[str, str]:
        """Token of the run that writes here, and where it runs; empty where none does."""
        with self._told("read"):
            token, _, place = self._pointed(WRITER).partition(" ")
        return token, place

    def claim(self, place: str) -> None:
        """From now on uploads of other runs are refused. `place` tells people whose it is."""
        with self._told("written"):
            self._write(self._path(WRITER), f"{self._token} {place}".encode())

    def _check_claim(self) -> None:
        token, place = self.writer()
        if token not in ("", self._token):
            raise StoreError(
                f"{self.uri} belongs to another run now ({place}): nothing more is written there; "
                "give each run a control.checkpoint_uri of its own"
            )

    # ------------------------------------------------------------------ what there is

    def names(self) -> list[str]:
        """Of checkpoints with a manifest, the one that LATEST names first, then by number."""
        with self._told("read"):
            names = self._names()
            newest = self._pointed(LATEST)
        return [newest, *(n for n in names if n != newest)] if newest in names else names

    def uri_of(self, name: str) -> str:
        return f"{self.uri}/{CHECKPOINTS_FOLDER}/{name}"

    def inventory(self, name: str) -> dict[str, FileEntry]:
        """The files of a checkpoint, checked but for the files. Raises CheckpointError."""
        with self._told("read"):
            return self._parsed(name, self._manifest(name))

    # ------------------------------------------------------------------ upload

    def upload(self, folder: Path, pointer: str = LATEST) -> int:
        """Copies a sealed checkpoint; returns the bytes that were not there yet.

        The manifest comes when all contents are there, and then `pointer` is made to name it.
        StoreError if another run has claimed the store.
        """
        self._check_claim()
        with self._told("written"):
            manifest = (folder / MANIFEST).read_bytes()
            inventory = self._parsed(folder.name, manifest)
            n_bytes = self._put_objects(folder, inventory)
            self._write(self._path(pointer), self._put_manifest(folder.name, manifest).encode())
        return n_bytes

    def mend(self, folder: Path, most_bytes: int) -> int:
        """Reads some contents of an uploaded checkpoint again, those first that were not read for
        longest, and uploads damaged ones anew; returns how many that were.

        most_bytes: to read, beside a first content of any size
        """
        self._check_claim()
        with self._told("read again"):
            inventory = self._parsed(folder.name, (folder / MANIFEST).read_bytes())
            files = {entry: folder / name for name, entry in inventory.items()}
            n_mended = 0
            for entry in sorted(files, key=lambda e: self._read_at.get(e.sha256, 0)):
                self._read_at[entry.sha256] = next(self._turns)
                if self._sha256(self._object(entry.sha256)) != entry.sha256:
                    self._fs.put_file(str(files[entry]), self._object(entry.sha256))
                    n_mended += 1
                most_bytes -= entry.n_bytes
                if most_bytes <= 0:
                    break
        return n_mended

    def remove_surplus(self, keep: int) -> None:
        """Keeps the newest `keep`, LATEST and BEST; removes the others, and contents nobody lists.

        While a manifest can't be read, no contents are removed.
        """
        with self._told("cleared of older checkpoints"):
            names = self._names()
            kept = {*names[:keep], self._pointed(LATEST), self._pointed(BEST)} & set(names)
            for name in set(names) - kept:
                self._fs.rm_file(self._manifest_path(name))
            try:
                inventories = [self._parsed(name, self._manifest(name)) for name in kept]
            except CheckpointError:
                return
            referenced = {entry.sha256 for files in inventories for entry in files.values()}
            for sha256 in self._objects().keys() - referenced:
                self._fs.rm_file(self._object(sha256))

    # ------------------------------------------------------------------ download

    def fetch(self, name: str, into: Path, only: Collection[str] = ()) -> Path:
        """Downloads a checkpoint to the new folder `into`/name, or of it the files `only`.

        Raises CheckpointError if the manifest may not be trusted, or a file is not as it says.
        """
        with self._told("read"):
            manifest = self._manifest(name)
            folder = into / name
            folder.mkdir(parents=True)
            (folder / MANIFEST).write_bytes(manifest)
            for file, entry in self._parsed(name, manifest).items():
                if not only or file in only:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    self._download(name, file, entry, folder / file)
        return folder

    def _download(self, name: str, file: str, entry: FileEntry, target: Path) -> None:
        digest, n_left = hashlib.sha256(), entry.n_bytes
        try:
            source = self._source(name, file, entry)
            with self._fs.open(source, "rb") as stream, target.open("xb") as out:
                while chunk := stream.read(min(_CHUNK_BYTES, n_left + 1)):
                    n_left -= len(chunk)
                    if n_left < 0:
                        break  # nothing is stored beyond what was announced
                    digest.update(chunk)
                    out.write(chunk)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.uri_of(name)}: {file} is missing") from error
        if n_left or digest.hexdigest() != entry.sha256:
            raise CheckpointError(
                f"{self.uri_of(name)}: {file} differs from its manifest (truncated or damaged)"
            )

    def _source(self, name: str, file: str, entry: FileEntry) -> str:
        """Where a content lies: once for all, or in a checkpoint that was copied here as it is."""
        own = self._object(entry.sha256)
        return own if self._fs.exists(own) else f"{self._path(CHECKPOINTS_FOLDER)}/{name}/{file}"

    # ------------------------------------------------------------------ contents

    def _put_objects(self, folder: Path, inventory: dict[str, FileEntry]) -> int:
        """Those that are not there, or were cut off; returns their bytes."""
        files = {entry: folder / name for name, entry in inventory.items()}
        there = self._objects()
        missing = [entry for entry in files if there.get(entry.sha256) != entry.n_bytes]
        for entry in missing:
            self._make_folder(self._path(OBJECTS_FOLDER))
            self._fs.put_file(str(files[entry]), self._object(entry.sha256))
            self._read_at[entry.sha256] = next(self._turns)
        there = self._objects() if missing else there
        for entry in missing:
            n_there = there.get(entry.sha256, 0)
            if n_there != entry.n_bytes:
                raise StoreError(
                    f"{self.uri} took {n_there:,} of the {entry.n_bytes:,} bytes of "
                    f"{files[entry].relative_to(folder)}"
                )
        return sum(entry.n_bytes for entry in missing)

    def _sha256(self, path: str) -> str:
        with self._fs.open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def _objects(self) -> dict[str, int]:
        """Bytes of the contents that are there, by checksum."""
        found = self._find(self._path(OBJECTS_FOLDER), depth=1)
        return {name: size for name, size in found.items() if _SHA256.fullmatch(name)}

    # ------------------------------------------------------------------ manifests and pointers

    def _names(self) -> list[str]:
        found = self._find(self._path(CHECKPOINTS_FOLDER), depth=2)
        parts = [path.split("/") for path in found]
        names = {part[0] for part in parts if part[1:] == [MANIFEST]}
        usable = (n for n in names if is_checkpoint_name(n) and not n.endswith(BACKUP_SUFFIX))
        return sorted(usable, reverse=True)

    def _put_manifest(self, name: str, manifest: bytes) -> str:
        """Returns the name it has there: where another checkpoint has it, one that sorts after."""
        taken = self._names()
        again = (f"{name}-again-{n:03d}" for n in count(1))
        while name in taken and self._fs.cat_file(self._manifest_path(name)) != manifest:
            name = next(again)
        if name not in taken:
            self._write(self._manifest_path(name), manifest)
        return name

    def _manifest(self, name: str) -> bytes:
        path = self._manifest_path(name)
        try:
            return self._read(path, LARGEST_MANIFEST_BYTES)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.uri_of(name)}: {MANIFEST} is missing") from error

    def _parsed(self, name: str, manifest: bytes) -> dict[str, FileEntry]:
        where = f"{self.uri_of(name)}/{MANIFEST}"
        try:
            content = json.loads(manifest)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{where} holds no object")
        return checked_inventory(content, where, required=COUNTERS)

    def _pointed(self, pointer: str) -> str:
        """Name that a pointer holds, whatever that may be; "" where there is none."""
        try:
            return self._read(self._path(pointer), _LARGEST_POINTER_BYTES).decode().strip()
        except (FileNotFoundError, CheckpointError, UnicodeDecodeError):
            return ""

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _object(self, sha256: str) -> str:
        return f"{self._path(OBJECTS_FOLDER)}/{sha256}"

    def _manifest_path(self, name: str) -> str:
        return f"{self._path(CHECKPOINTS_FOLDER)}/{name}/{MANIFEST}"

    # ------------------------------------------------------------------ the driver

    def _find(self, folder: str, depth: int) -> dict[str, int]:
        """Sizes of the files down to `depth` levels below `folder`, by the path below it."""
        self._fs.invalidate_cache()
        prefix = folder.lstrip("/") + "/"
        found = self._fs.find(folder, maxdepth=depth, detail=True)
        return {path.lstrip("/").removeprefix(prefix): i["size"] for path, i in found.items()}

    def _read(self, path: str, most_bytes: int) -> bytes:
        self._fs.invalidate_cache()
        with self._fs.open(path, "rb") as file:
            content: bytes = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise CheckpointError(f"{path} in {self.uri} has more than {most_bytes:,} bytes")
        return content

    def _write(self, path: str, content: bytes) -> None:
        """Whole, or StoreError."""
        self._make_folder(path.rpartition("/")[0])
        self._fs.pipe_file(path, content)
        self._fs.invalidate_cache()
        if self._fs.cat_file(path) != content:
            raise StoreError(f"{path} does not hold what was written to it")

    def _make_folder(self, path: str) -> None:
        if has_folders(self._fs):
            self._fs.makedirs(path, exist_ok=True)

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """Drivers raise whatever their libraries do; here it becomes one kind of error."""
        try:
            yield
        except (CheckpointError, StoreError):
            raise
        except Exception as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise StoreError(f"{self.uri} can't be {done}: {cause}") from error
