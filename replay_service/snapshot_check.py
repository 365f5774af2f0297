"""What the files of a snapshot must hold before replay goes on from it.

They may be damaged, or made by somebody else: sizes and ranges are checked before any memory is
taken by them, and rows against the segments that are said to lie in them. ValueError names what is
wrong; `snapshot.load` adds the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service.storage import StoredSegment
from replay_service.targets import ENDING_OPEN, ENDING_TERMINATED, ENDING_TRUNCATED
from replay_service.text_pool import NO_TEXT

if TYPE_CHECKING:
    from replay_service.replay import Replay

_LARGEST = 2**63 - 1
_FRACTIONS = ("last_unique_ratio", "unique_ratio_sum")
_CHUNK_ROWS = 4_096
_DIGEST_LENGTH = 64  # of SHA-256 in hexadecimal


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the two trees draw from; high_row entries each."""

    priority: NDArray[np.float32]
    sample_weight: NDArray[np.float64]
    text_weight: NDArray[np.float64]


def check_state(
    replay: Replay, state: Mapping[str, Any], counters: Collection[str], *, is_old: bool
) -> None:
    """Of replay.json, whose format, spec and settings are those of `replay` already.

    counters: names of those that there are
    is_old:   of an older format, whose segments are checked one by one when they are read
    """
    if is_old:
        entries = _list("live", state["live"])
        known = {_segment_id("live", _field(entry, "segment_id")) for entry in entries}
    else:
        known = {stored.segment_id for stored in _check_places(replay, state)}
    for entry in _list("refresh_order", state["refresh_order"]):
        if _segment_id("refresh_order", entry) not in known:
            raise ValueError("refresh_order names a segment that is not live")
    for entry in _list("evicted_sequence", state["evicted_sequence"]):
        _segment_id("evicted_sequence", entry)
    _check_counters(state["counters"], counters)
    _whole("n_invalid_priorities", state["n_invalid_priorities"], 0, _LARGEST)
    _fraction("highest_priority", state["highest_priority"])
    for name in ("rng", "text_rng"):
        try:
            np.random.default_rng().bit_generator.state = state[name]
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"{name} is no state of a generator") from error


def _check_places(replay: Replay, state: Mapping[str, Any]) -> list[StoredSegment]:
    """Where segments lie in the ring; returns them."""
    n_rows, n_frames = replay.ring.n_rows, replay.ring.frames.n_slots
    high_row = _whole("high_row", state["high_row"], 0, n_rows)
    head = _whole("head", state["head"], 0, n_rows)
    _whole("high_slot", state["high_slot"], 0, n_frames)
    for number, count in enumerate(_list("frame_writes", state["frame_writes"])):
        _whole(f"frame_writes[{number}]", count, 0, _LARGEST)
    live = _check_live(replay, _list("live", state["live"]), high_row)
    if head != (live[-1].start + live[-1].n_rows if live else head):
        raise ValueError(f"head is {head}, expected the row after the newest segment")
    return live


def check_texts(texts: object) -> None:
    """Of text.npy: ids with a prompt, or with a list of options."""
    if not isinstance(texts, dict) or texts.keys() != {"prompt", "options"}:
        raise ValueError("text must hold prompt and options")
    for name in ("prompt", "options"):
        for entry in _list(name, texts[name]):
            if not isinstance(entry, list) or len(entry) != 2:
                raise ValueError(f"{name} must hold pairs of id and text")
            _whole(f"{name} id", entry[0], 0, 2**31 - 1)
            row = [entry[1]] if name == "prompt" else _list(name, entry[1])
            if not all(isinstance(text, str) for text in row):
                raise ValueError(f"{name} must hold texts")


def check_rows(
    replay: Replay,
    live: Sequence[StoredSegment],
    state: Mapping[str, Any],
    texts: Mapping[str, Any],
    drawn: Drawn,
) -> None:
    """Of replay.npz and the frames, once they lie in the ring and before anything is drawn."""
    high_row = state["high_row"]
    frame_stack = replay.spec.frame_stack
    is_trainable = np.zeros(high_row, dtype=np.bool_)
    end = np.full(high_row, -1, dtype=np.int64)
    has_text = np.zeros(high_row, dtype=np.bool_)
    n_positions = 0
    for stored in live:
        end[stored.rows] = stored.start + stored.n_rows - frame_stack
        has_text[stored.rows] = stored.has_text
        is_trainable[stored.trainable] = True
        weights = drawn.sample_weight[stored.trainable]
        if (weights > 0.0).any() != (weights > 0.0).all():
            raise ValueError(f"sample_weight is 0 for a part of segment {stored.segment_id}")
        n_positions += stored.n_trainable if weights[0] > 0.0 else 0
    if state["counters"].get("n_positions") != n_positions:
        raise ValueError(f"counters.n_positions must be {n_positions}, the drawable positions")
    _check_drawn(drawn, is_trainable)
    _check_frames(replay, state["high_slot"])
    rows = np.flatnonzero(end >= 0)
    for start in range(0, len(rows), _CHUNK_ROWS):
        _check_chunk(replay, rows[start : start + _CHUNK_ROWS], end)
    for name, column in (("prompt", "prompt"), ("options", "options")):
        ids = {entry[0] for entry in texts[name]} | {NO_TEXT}
        held = replay.ring.arrays[column][:high_row]
        allowed = np.isin(held[has_text], list(ids))
        if not allowed.all() or (held[(end >= 0) & ~has_text] != NO_TEXT).any():
            raise ValueError(f"{name} refers to a text that is not there")
    if ((drawn.text_weight > 0.0) & (replay.ring.arrays["prompt"][:high_row] == NO_TEXT)).any():
        raise ValueError("text_weight draws a row without a prompt")


def _check_frames(replay: Replay, high_slot: int) -> None:
    spec = replay.spec
    if spec.obs_dtype == "uint8":
        return  # any byte is a pixel
    for start in range(0, high_slot, _CHUNK_ROWS):
        frames = replay.ring.frames.frames[start : min(start + _CHUNK_ROWS, high_slot)]
        if spec.is_text and not bool(((frames >= 0) & (frames < spec.n_tokens)).all()):
            raise ValueError(f"obs holds a token id outside 0..{spec.n_tokens - 1}")
        if not bool(torch.isfinite(frames).all()):
            raise ValueError("obs holds NaN or infinity")


def _check_chunk(replay: Replay, rows: NDArray[np.int64], end: NDArray[np.int64]) -> None:
    ring, span = replay.ring, slice(int(rows[0]), int(rows[-1]) + 1)
    names = [name for name in _READ if name in ring.tensors]
    held = {name: ring.read(name, span)[rows - rows[0]] for name in names}
    if (held["end"] != end[rows]).any():
        raise ValueError("end is not where the segment of a row ends")
    allowed = (ENDING_OPEN, ENDING_TERMINATED, ENDING_TRUNCATED)
    for name, is_good in (
        ("ending", np.isin(held["ending"], allowed)),
        ("action", (held["action"] >= 0) & (held["action"] < replay.spec.n_actions)),
        ("policy", held["policy"] >= 0),
        ("weight_version", held["weight_version"] >= -1),
        ("target_version", held["target_version"] >= -1),
        ("generation", held["generation"] >= 0),
    ):
        if not is_good.all():
            raise ValueError(f"{name} holds a number that is out of range")
    if "legal" in held and not held["legal"][np.arange(len(rows)), held["action"]].all():
        raise ValueError("legal rules out an action that was played")
    for name, column in held.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise ValueError(f"{name} holds NaN or infinity")


_READ = (
    "action", "reward", "policy", "root_value", "end", "ending", "weight_version",
    "target_version", "generation", "legal", "advantage",
)  # fmt: skip


def _check_drawn(drawn: Drawn, is_trainable: NDArray[np.bool_]) -> None:
    for name in ("priority", "sample_weight", "text_weight"):
        values = getattr(drawn, name)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"{name} holds a number that is not finite or below 0")
    for name in ("sample_weight", "text_weight"):
        if getattr(drawn, name)[~is_trainable].any():
            raise ValueError(f"{name} draws a row that no live segment offers")


def _check_live(replay: Replay, entries: Sequence[object], high_row: int) -> list[StoredSegment]:
    """Segments one after the other around the ring, each once."""
    live = [read_stored(entry) for entry in entries]
    frame_stack = replay.spec.frame_stack
    for number, stored in enumerate(live):
        name = f"live[{number}]"
        _whole(f"{name}.n_rows", stored.n_rows, frame_stack + 1, high_row)
        _whole(f"{name}.start", stored.start, 0, high_row - stored.n_rows)
        _whole(f"{name}.n_trainable", stored.n_trainable, 1, stored.n_rows - frame_stack)
        if number and stored.start not in (0, live[number - 1].rows.stop):
            raise ValueError(f"{name}.start must be 0 or follow the segment before")
    by_row = sorted(live, key=lambda stored: stored.start)
    for before, after in pairwise(by_row):
        if before.rows.stop > after.start:
            raise ValueError(f"live segments {before.segment_id} and {after.segment_id} overlap")
    if len({stored.segment_id for stored in live}) < len(live):
        raise ValueError("live names a segment twice")
    return live


def read_stored(entry: object) -> StoredSegment:
    """One entry of `live`; ValueError if it is no such thing."""
    names = {field.name for field in fields(StoredSegment)}
    if not isinstance(entry, Mapping) or set(entry) != names:
        raise ValueError(f"live must hold segments with {', '.join(sorted(names))}")
    for name in ("start", "n_rows", "n_trainable"):
        _whole(f"live.{name}", entry[name], 0, _LARGEST)
    _whole("live.env_id", entry["env_id"], -1, _LARGEST)
    if not isinstance(entry["tail_digest"], str) or len(entry["tail_digest"]) > _DIGEST_LENGTH:
        raise ValueError("live.tail_digest must be a text of at most 64 characters")
    if not isinstance(entry["has_text"], bool):
        raise ValueError("live.has_text must be true or false")
    return StoredSegment(**{**entry, "segment_id": _segment_id("live", entry["segment_id"])})


def _field(entry: object, name: str) -> object:
    return entry.get(name) if isinstance(entry, Mapping) else None


def _segment_id(name: str, entry: object) -> tuple[int, int, int]:
    if not isinstance(entry, list | tuple) or len(entry) != 3:
        raise ValueError(f"{name} must name segments by three numbers")
    actor, incarnation, sequence = (_whole(f"{name} id", part, -1, _LARGEST) for part in entry)
    return actor, incarnation, sequence


def _check_counters(found: object, names: Collection[str]) -> None:
    if not isinstance(found, Mapping):
        raise ValueError("counters must hold numbers by name")
    unknown = sorted(map(str, set(found) - set(names)))
    if unknown:
        raise ValueError(f"counters.{unknown[0][:50]} is not known")
    for name, value in found.items():
        if name in _FRACTIONS:
            _fraction(f"counters.{name}", value)
        else:
            _whole(f"counters.{name}", value, -1 if name == "newest_version" else 0, _LARGEST)
    if "n_samples" not in found:
        raise ValueError("counters.n_samples is missing")


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {type(value).__name__}, expected a list")
    return value


def _whole(name: str, value: object, lowest: int, highest: int) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        shown = str(value)[:30] if type(value) is int and abs(value) < 10**30 else "something else"
        raise ValueError(f"{name} is {shown}, expected a whole number in {lowest}..{highest}")
    return value


def _fraction(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0.0 <= value < 1e300:  # type: ignore[operator]
        raise ValueError(f"{name} must be a finite number of at least 0")
