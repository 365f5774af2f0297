"""Replay on disk: replay.npz with the ring's rows, replay.json with the rest; no pickle.

Rows are streamed straight into and out of the ring, so neither direction needs a second copy of
the data in memory.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from replay_service.segment import pack_json, unpack_json
from replay_service.storage import StoredSegment, column_layout
from replay_service.text_pool import NO_TEXT

if TYPE_CHECKING:
    from replay_service.replay import Replay

ARRAYS_FILE = "replay.npz"
STATE_FILE = "replay.json"
FORMAT_VERSION = 1

_CHUNK_BYTES = 16 << 20


@dataclass(slots=True)
class Counters:
    """Totals since the start of the run."""

    n_positions: int = 0  # trainable now
    n_pushed: int = 0
    n_duplicates: int = 0
    n_rejected: int = 0
    n_stale: int = 0
    n_dropped_too_old: int = 0  # segments
    n_masked_too_old: int = 0  # positions
    newest_version: int = -1  # of the weights that any segment was played with
    n_samples: int = 0  # sample calls; beta follows it
    last_unique_ratio: float = 0.0  # distinct positions per batch element
    unique_ratio_sum: float = 0.0

    def count_sample(self, unique_ratio: float) -> None:
        self.n_samples += 1
        self.last_unique_ratio = unique_ratio
        self.unique_ratio_sum += unique_ratio

    @property
    def mean_unique_ratio(self) -> float:
        return self.unique_ratio_sum / max(self.n_samples, 1)


def save(replay: Replay, folder: Path) -> None:
    """Write both files into `folder` (made if missing) and sync them to disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ARRAYS_FILE, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in _saved_arrays(replay):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.save(member, array, allow_pickle=False)
        _sync(file)
    with open(folder / STATE_FILE, "w", encoding="utf-8") as file_text:
        json.dump(_state(replay), file_text)
        _sync(file_text)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(replay: Replay, folder: Path) -> None:
    """Restore a replay of the same configuration; it must not have been used yet.

    ValueError names the file and what does not fit; the replay is empty then.
    """
    assert replay.ring.high_row == 0, "load into a replay that already holds segments"
    state = _read_state(folder / STATE_FILE)
    _check_state(replay, state, folder / STATE_FILE)
    path = folder / ARRAYS_FILE
    try:
        with zipfile.ZipFile(path) as archive:
            if "legal.npy" in archive.namelist():
                replay.ring.allocate("legal")
            targets = dict(_ring_arrays(replay, state["high_row"]))
            for name, out in targets.items():
                _check_member(archive, name, out)
            for name, out in targets.items():
                _read_member(archive, name, out)
            with archive.open("text.npy") as member:
                texts = unpack_json(np.load(io.BytesIO(member.read()), allow_pickle=False))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        for tree in (replay.sampler.tree, replay.text_tree):
            tree.leaves[:] = 0.0
        raise ValueError(f"{path} is not a readable replay snapshot: {error}") from error
    _restore(replay, state, texts)


def _ring_arrays(replay: Replay, high_row: int) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Views of the rows ever written, by the name they have in the file."""
    for name in column_layout(replay.spec):
        if name in replay.ring.arrays:
            yield name, replay.ring.arrays[name][:high_row]
    yield "priority", replay.sampler.priority[:high_row]
    yield "sample_weight", replay.sampler.tree.leaves[:high_row]
    yield "text_weight", replay.text_tree.leaves[:high_row]


def _saved_arrays(replay: Replay) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield from _ring_arrays(replay, replay.ring.high_row)
    yield "text", pack_json(_texts(replay))


def _texts(replay: Replay) -> dict[str, list[list[object]]]:
    """Live texts with the ids that the rows refer to."""
    ring = replay.ring
    prompt_ids, option_ids = set(), set()
    for stored in ring.live:
        rows = slice(stored.start, stored.start + stored.n_rows)
        prompt_ids.update(ring.arrays["prompt"][rows].tolist())
        option_ids.update(ring.arrays["options"][rows].tolist())
    return {
        "prompt": [[i, ring.prompts[i]] for i in sorted(prompt_ids - {NO_TEXT})],
        "options": [[i, list(ring.options[i])] for i in sorted(option_ids - {NO_TEXT})],
    }


def _state(replay: Replay) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "spec": asdict(replay.spec),
        "n_rows": replay.ring.n_rows,
        "alpha": replay.config.exponent,
        "priority_floor": replay.config.priority_floor,
        "high_row": replay.ring.high_row,
        "head": replay.ring.head,
        "live": [asdict(stored) for stored in replay.ring.live],
        "evicted_sequence": [[*key, value] for key, value in replay.evicted_sequence.items()],
        "counters": asdict(replay.counters),
        "n_invalid_priorities": replay.sampler.n_invalid,
        "highest_priority": replay.sampler.highest,
        "rng": replay.rng.bit_generator.state,
        "text_rng": replay.text_rng.bit_generator.state,
    }


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable replay snapshot: {error}") from error
    return state


def _check_state(replay: Replay, state: dict[str, Any], path: Path) -> None:
    expected = _state(replay)
    missing = sorted(set(expected) - set(state))
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    saved_spec = {name: _plain(value) for name, value in state["spec"].items()}
    state["spec"] = saved_spec
    expected["spec"] = {name: _plain(value) for name, value in asdict(replay.spec).items()}
    for name in ("format_version", "spec", "n_rows", "alpha", "priority_floor"):
        if state[name] != expected[name]:
            raise ValueError(
                f"{path} was saved with {name}={state[name]}, this replay has {expected[name]}; "
                f"resume with the configuration of the saved run"
            )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _check_member(archive: zipfile.ZipFile, name: str, out: NDArray[np.generic]) -> None:
    with archive.open(f"{name}.npy") as member:
        shape, dtype = _read_header(member)
    if shape != out.shape or dtype != out.dtype:
        raise ValueError(f"{name} is {dtype} {shape}, expected {out.dtype} {out.shape}")


def _read_member(archive: zipfile.ZipFile, name: str, out: NDArray[np.generic]) -> None:
    with archive.open(f"{name}.npy") as member:
        _read_header(member)
        target = out.reshape(-1).view(np.uint8).data
        n_read = 0
        while n_read < len(target):
            chunk = member.read(min(_CHUNK_BYTES, len(target) - n_read))
            if not chunk:
                raise EOFError(f"{name} ends after {n_read} of {len(target)} bytes")
            target[n_read : n_read + len(chunk)] = chunk
            n_read += len(chunk)
        if member.read(1):  # also makes the archive compare its checksum
            raise ValueError(f"{name} goes on after {n_read} bytes")


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"array format {version} is not supported, expected (1, 0)")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if is_fortran:
        raise ValueError("column-major arrays are not supported")
    return shape, dtype


def _restore(replay: Replay, state: dict[str, Any], texts: dict[str, list[Any]]) -> None:
    ring, sampler = replay.ring, replay.sampler
    ring.high_row, ring.head = state["high_row"], state["head"]
    for entry in state["live"]:
        entry["segment_id"] = tuple(entry["segment_id"])
        stored = StoredSegment(**entry)
        ring.live.append(stored)
        ring.n_rows_used += stored.n_rows
    ring.restore_text(
        prompts=dict(texts["prompt"]),
        options={text_id: tuple(row) for text_id, row in texts["options"]},
    )
    # Parents are a function of the leaves, so the trees come back bit for bit.
    for tree in (sampler.tree, replay.text_tree):
        tree.set_span(0, ring.high_row, tree.leaves[: ring.high_row].copy())
    sampler.n_invalid = state["n_invalid_priorities"]
    sampler.highest = state["highest_priority"]
    for actor, incarnation, sequence in state["evicted_sequence"]:
        replay.evicted_sequence[actor, incarnation] = sequence
    replay.counters = Counters(**state["counters"])
    replay.rng.bit_generator.state = state["rng"]
    replay.text_rng.bit_generator.state = state["text_rng"]


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
