"""Replay on disk: blocks of frames, replay.npz with the ring's other columns, replay.json with the
rest; no pickle.

Rows are streamed straight into and out of the ring, so neither direction needs a second copy of
the data in memory. Blocks of frames that did not change are shared with the snapshot before.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from replay_service.array_file import check_array, read_array, read_vector, write_array
from replay_service.old_snapshot import OLD_VERSIONS, read_old
from replay_service.segment import pack_json, unpack_json
from replay_service.snapshot_check import Drawn, check_rows, check_state, check_texts, read_stored
from replay_service.staleness import Aged
from replay_service.storage import StoredSegment
from replay_service.text_pool import NO_TEXT

if TYPE_CHECKING:
    from replay_service.replay import Replay

ARRAYS_FILE = "replay.npz"
STATE_FILE = "replay.json"
FORMAT_VERSION = 5
READABLE_VERSIONS = (*OLD_VERSIONS, FORMAT_VERSION)


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
    newest_version: int = -1  # of the weights that anybody spoke of
    n_patched: int = 0  # positions that got newer targets
    n_patch_stale: int = 0
    n_patch_invalid: int = 0
    n_samples: int = 0  # draws of at least one position
    n_batches: int = 0  # of the whole replay, over all shards; beta follows it
    last_unique_ratio: float = 0.0  # distinct positions per batch element
    unique_ratio_sum: float = 0.0

    @property
    def mean_unique_ratio(self) -> float:
        return self.unique_ratio_sum / max(self.n_samples, 1)


def save(replay: Replay, folder: Path, previous: Path | None = None) -> None:
    """Write all files into `folder` (made if missing) and sync them to disk.

    previous: an older snapshot's folder, whose blocks of frames are used where they are the same
    """
    replay.settle()
    folder.mkdir(parents=True, exist_ok=True)
    frames = replay.ring.frames
    frames.blocks.save(folder, frames.high_slot, previous)
    with open(folder / ARRAYS_FILE, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, tensor in _saved_tensors(replay):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    write_array(member, tensor)
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

    ValueError names the file and what does not fit; the replay is empty then. Nothing takes more
    memory than the ring and the files have.
    """
    assert replay.ring.high_row == 0, "load into a replay that already holds segments"
    state = _read_state(folder / STATE_FILE)
    _check_state(replay, state, folder / STATE_FILE)
    if state["format_version"] in OLD_VERSIONS:
        _load_old(replay, folder, state)
        return
    path = folder / ARRAYS_FILE
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            drawn = _read_arrays(replay, state, archive)
            texts = unpack_json(read_vector(archive, "text", np.uint8))
            freed_slots = read_vector(archive, "freed_slots", np.int32)
        check_texts(texts)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    live = [read_stored(entry) for entry in state["live"]]
    frames = replay.ring.frames
    try:
        frames.blocks.load(folder, state["frame_writes"], state["high_slot"])
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{folder} holds no readable frames: {str(error)[:500]}") from error
    try:
        check_rows(replay, live, state, texts, drawn)
        slots = [replay.ring.read("frame", stored.rows).view(np.int32) for stored in live]
        frames.restore(live, slots, freed_slots, state["high_slot"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    _restore(replay, state, texts, drawn, live)


def _load_old(replay: Replay, folder: Path, state: dict[str, Any]) -> None:
    """Put the segments of an older format in, once more."""
    try:
        held = read_old(folder, ARRAYS_FILE, state, replay.spec)
    except (*_UNREADABLE, TypeError, IndexError) as error:
        raise _unreadable(folder, error) from error
    for actor, incarnation, sequence in state["evicted_sequence"]:
        replay.segments.evicted_sequence[actor, incarnation] = sequence
    for old in held:
        replay.take_over(old)
    replay.note_newest(state["counters"].get("newest_version", -1))
    n_positions = replay.n_positions
    _restore_draws(replay, state)
    replay.counters.n_positions = n_positions
    _restore_refresh_order(replay, state)


# What zipfile raises for headers that are not as they should be.
_UNREADABLE = (
    OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError,
    OverflowError, struct.error,
)  # fmt: skip


def _unreadable(path: Path, error: Exception) -> ValueError:
    cause = str(error)[:500]  # zipfile quotes headers, which may be anything
    return ValueError(f"{path} is not a readable replay snapshot: {cause}")


def _check_members(archive: zipfile.ZipFile, n_bytes: int) -> None:
    """Members are stored as they are, so none can be larger than the file."""
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or not 0 <= info.file_size <= n_bytes:
            raise ValueError(f"{info.filename[:50]!r} is compressed or larger than the file")


def _read_arrays(replay: Replay, state: dict[str, Any], archive: zipfile.ZipFile) -> Drawn:
    """Fill the ring's rows; nothing is drawable before `_restore`."""
    ring, high_row = replay.ring, state["high_row"]
    if "legal.npy" in archive.namelist():
        ring.allocate("legal")
    drawn = Drawn(
        np.empty(high_row, np.float32), np.empty(high_row, np.float64), np.empty(high_row)
    )
    targets = {name: tensor[:high_row] for name, tensor in ring.tensors.items()}
    targets |= {name: torch.from_numpy(getattr(drawn, name)) for name in Drawn.__slots__}
    for name, out in targets.items():
        with archive.open(f"{name}.npy") as member:
            check_array(member, name, out)
    for name, out in targets.items():
        with archive.open(f"{name}.npy") as member:
            read_array(member, name, out)
    return drawn


def _saved_tensors(replay: Replay) -> Iterator[tuple[str, Tensor]]:
    """The rows ever written, by the name they have in the file; frames are apart."""
    high_row = replay.ring.high_row
    for name, tensor in replay.ring.tensors.items():
        yield name, tensor[:high_row]
    yield "freed_slots", torch.from_numpy(replay.ring.frames.freed_slots)
    priority, weights = replay.sampler.columns(high_row)
    yield "priority", priority
    yield "sample_weight", weights
    yield "text_weight", torch.from_numpy(replay.text_sampler.tree.leaves[:high_row])
    yield "text", torch.from_numpy(pack_json(_texts(replay)).copy())


def _texts(replay: Replay) -> dict[str, list[list[object]]]:
    """Live texts with the ids that the rows refer to."""
    ring = replay.ring
    prompt_ids, option_ids = set(), set()
    for stored in ring.live:
        prompt_ids.update(ring.arrays["prompt"][stored.rows].tolist())
        option_ids.update(ring.arrays["options"][stored.rows].tolist())
    return {
        "prompt": [[i, ring.prompts[i]] for i in sorted(prompt_ids - {NO_TEXT})],
        "options": [[i, list(ring.options[i])] for i in sorted(option_ids - {NO_TEXT})],
    }


def _state(replay: Replay) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "spec": asdict(replay.spec),
        "n_rows": replay.ring.n_rows,
        "scalars": replay.config.scalars,
        "advantages": replay.config.advantages,
        "alpha": replay.config.exponent,
        "priority_floor": replay.config.priority_floor,
        "high_row": replay.ring.high_row,
        "n_frames": replay.ring.frames.n_slots,
        "high_slot": replay.ring.frames.high_slot,
        "frame_writes": replay.ring.frames.blocks.writes.tolist(),
        "head": replay.ring.head,
        "live": [asdict(stored) for stored in replay.ring.live],
        "refresh_order": replay.segments.refresh_queue.segment_ids,
        "evicted_sequence": [
            [*key, value] for key, value in replay.segments.evicted_sequence.items()
        ],
        "counters": asdict(replay.counters),
        "n_invalid_priorities": replay.sampler.n_invalid,
        "highest_priority": replay.sampler.highest,
        "rng": replay.rng.bit_generator.state,
        "text_rng": replay.text_sampler.rng.bit_generator.state,
    }


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a readable replay snapshot: it holds no object")
    if state.get("format_version") == 1:
        state = {"scalars": "float16", "refresh_order": []} | state
    return {"advantages": False} | state  # snapshots of before have none


def _check_state(replay: Replay, state: dict[str, Any], path: Path) -> None:
    expected = _state(replay)
    is_old = state.get("format_version") in OLD_VERSIONS
    optional = {"frame_writes", "n_frames", "high_slot"} if is_old else set()
    missing = sorted(set(expected) - set(state) - optional)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if not isinstance(state["spec"], dict):
        raise ValueError(f"{path}: spec is {type(state['spec']).__name__}, expected an object")
    # Texts came later: what lacks their fields holds none.
    saved_spec = {"n_tokens": 0, "text_encoder": ""} | state["spec"]
    state["spec"] = {name: _plain(value) for name, value in saved_spec.items()}
    expected["spec"] = {name: _plain(value) for name, value in asdict(replay.spec).items()}
    version = state["format_version"]
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise ValueError(
            f"{path} has format_version={str(version)[:20]}, this program reads "
            f"{READABLE_VERSIONS}; resume with the program that saved it"
        )
    sizes = () if is_old else ("n_rows", "n_frames")
    for name in ("spec", "scalars", "advantages", *sizes, "alpha", "priority_floor"):
        if state[name] != expected[name]:
            raise ValueError(
                f"{path} was saved with {name}={str(state[name])[:200]}, this replay has "
                f"{expected[name]}; resume with the configuration of the saved run"
            )
    try:
        check_state(replay, state, [field.name for field in fields(Counters)], is_old=is_old)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _restore(
    replay: Replay,
    state: dict[str, Any],
    texts: dict[str, list[Any]],
    drawn: Drawn,
    live: list[StoredSegment],
) -> None:
    ring = replay.ring
    ring.high_row, ring.head = state["high_row"], state["head"]
    ring.live.extend(live)
    ring.n_rows_used = sum(stored.n_rows for stored in live)
    ring.restore_text(
        prompts=dict(texts["prompt"]),
        options={text_id: tuple(row) for text_id, row in texts["options"]},
    )
    # Parents are a function of the leaves, so the trees come back bit for bit.
    replay.text_sampler.tree.set_span(0, ring.high_row, drawn.text_weight)
    replay.sampler.restore(drawn.priority, drawn.sample_weight)
    _restore_draws(replay, state)
    _restore_segments(replay, state, drawn)
    _restore_refresh_order(replay, state)


def _restore_draws(replay: Replay, state: dict[str, Any]) -> None:
    """Counters and random streams."""
    counters = state["counters"]
    replay.counters = Counters(**{"n_batches": counters["n_samples"], **counters})
    sampler = replay.sampler
    sampler.n_stale = replay.counters.n_stale
    sampler.n_invalid = state["n_invalid_priorities"]
    sampler.highest = state["highest_priority"]
    replay.rng.bit_generator.state = state["rng"]
    replay.text_sampler.rng.bit_generator.state = state["text_rng"]


def _restore_segments(replay: Replay, state: dict[str, Any], drawn: Drawn) -> None:
    """Which segments are known and masked."""
    segments, staleness = replay.segments, replay.staleness
    for actor, incarnation, sequence in state["evicted_sequence"]:
        segments.evicted_sequence[actor, incarnation] = sequence
    staleness.note(replay.counters.newest_version)
    for stored in replay.ring.live:
        segments.insert(stored)
        if drawn.sample_weight[stored.start] == 0.0:
            segments.mask(stored)
            continue
        version = replay.ring.read("weight_version", slice(stored.start, stored.start + 1))[0]
        staleness.insert(Aged(int(version), stored.segment_id))


def _restore_refresh_order(replay: Replay, state: dict[str, Any]) -> None:
    queue = replay.segments.refresh_queue
    for segment_id in map(tuple, state["refresh_order"]):
        queue.remove(segment_id)
        if replay.segments.get(segment_id) is not None:
            queue.insert(segment_id)


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
