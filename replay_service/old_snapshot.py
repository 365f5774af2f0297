"""Snapshots of formats 1 to 4, as the segments that they hold.

Up to format 4 every row had a frame of its own, so rows and frames come to lie elsewhere: a replay
takes the segments in once more, with the targets and priorities that they had. Read whole, so that
the data are in memory twice for as long as that takes.

Format 1 had no target versions, no order of refreshing, and 64 bit weight versions; 2 did not count
batches apart from the draws of a shard; up to 3 frames were in replay.npz.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay_service.segment import GameSpec, Segment, SegmentHeader, unpack_json
from replay_service.segment_check import check_segment
from replay_service.targets import ENDING_TERMINATED, ENDING_TRUNCATED
from replay_service.text_pool import NO_TEXT

OLD_VERSIONS = (1, 2, 3, 4)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OldSegment:
    """target_version: [T] int32, of each step."""

    segment: Segment
    target_version: NDArray[np.int32]


def read_old(
    folder: Path, arrays_file: str, state: Mapping[str, Any], spec: GameSpec
) -> list[OldSegment]:
    """All live segments, the oldest first; ValueError or OSError if the files are damaged."""
    with np.load(folder / arrays_file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "frame_writes" in state:
        arrays["obs"] = _read_blocks(folder, state["frame_writes"], state["high_row"])
    arrays.setdefault("target_version", arrays["weight_version"])
    texts = unpack_json(arrays["text"])
    pools = {name: dict(texts[name]) for name in ("prompt", "options")}
    return list(_segments(state["live"], arrays, pools, spec))


def _read_blocks(folder: Path, writes: list[int], high_row: int) -> NDArray[Any]:
    blocks: list[NDArray[Any]] = []
    for block, n_writes in enumerate(writes):
        if sum(map(len, blocks)) >= high_row:
            break
        path = folder / f"frames-{block:05d}-{n_writes:09d}.npy"
        blocks.append(np.load(path, allow_pickle=False))
    return np.concatenate(blocks) if blocks else np.empty(0)


def _segments(
    live: list[dict[str, Any]], arrays: Arrays, pools: Mapping[str, dict[int, Any]], spec: GameSpec
) -> Iterator[OldSegment]:
    for entry in live:
        start, n_rows = entry["start"], entry["n_rows"]
        steps = slice(start, start + n_rows - spec.frame_stack)
        ended = np.zeros((2, n_rows - spec.frame_stack), bool)
        ended[:, -1] = arrays["ending"][start] == (ENDING_TERMINATED, ENDING_TRUNCATED)
        prompt = options = None
        if entry["has_text"]:
            prompt_ids, option_ids = (arrays[name][steps].tolist() for name in pools)
            prompt = tuple("" if i == NO_TEXT else pools["prompt"][i] for i in prompt_ids)
            options = tuple(() if i == NO_TEXT else tuple(pools["options"][i]) for i in option_ids)
        segment = Segment(
            header=_header(entry["segment_id"], int(arrays["weight_version"][start])),
            obs=arrays["obs"][start : start + n_rows],
            action=arrays["action"][steps],
            reward=arrays["reward"][steps],
            policy=arrays["policy"][steps],
            root_value=arrays["root_value"][steps],
            terminated=ended[0],
            truncated=ended[1],
            legal=arrays["legal"][steps] if "legal" in arrays else None,
            prompt=prompt,
            options=options,
            priority=arrays["priority"][steps],
            n_trainable=entry["n_trainable"],
        )
        check_segment(segment, spec)
        yield OldSegment(segment, arrays["target_version"][steps].astype(np.int32))


def _header(segment_id: list[int], weight_version: int) -> SegmentHeader:
    """With what replay needs to know; the rest was not saved."""
    actor, incarnation, sequence = segment_id
    return SegmentHeader(
        run_id="",
        actor=actor,
        incarnation=incarnation,
        sequence=sequence,
        env_id=0,
        level="",
        seed=0,
        rom_hash="",
        weight_version_min=weight_version,
        weight_version_max=weight_version,
        prior_version=-1,
        reward_version=0,
    )
