"""Targets searched again: which segments to hand out, and late writes of new policies and values.

A patch is applied slot by slot, and only where the slot still holds the position that was searched
and nothing newer was written. `ReanalysisSource` is how a reanalyser reaches the shards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from replay_service.placement import upload
from replay_service.segment_check import POLICY_SUM_ERROR
from replay_service.storage import HOST_COLUMNS, SegmentId, SegmentRing, StoredSegment
from replay_service.targets import Handles
from replay_service.text_pool import NO_TEXT


@dataclass(frozen=True, slots=True)
class ReanalysisRequest:
    """A segment of T steps to search again, A actions; numpy arrays of its own, F = frame_stack.

    obs, action, legal are laid out as in Segment: step t's observation is the frames t .. t+F-1,
    and the history of every step, from the segment's start on, is inside.

    handles:        T slots and generations, one per step, for the TargetPatch
    n_trainable:    the first steps may start a sample; the rest is context, whose policies windows
                    read as well
    target_version: oldest weights that the targets of a trainable step were searched with
    prompt:         per step the text that the LLM was asked about, "" where it was not; or None
    options:        per step the option text of each action, () without a prompt; None as `prompt`
    """

    segment_id: SegmentId
    handles: Handles
    n_trainable: int
    target_version: int
    obs: NDArray[np.generic]
    action: NDArray[np.int16]
    legal: NDArray[np.bool_] | None
    prompt: tuple[str, ...] | None = None
    options: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True, slots=True)
class TargetPatch:
    """New targets of K positions, A actions, searched with weights of one version.

    handles: of the positions, as handed out; policy: [K, A] visit shares; root_value: [K]
    """

    handles: Handles
    policy: NDArray[np.floating]
    root_value: NDArray[np.floating]
    target_version: int

    def __len__(self) -> int:
        return len(self.handles)

    def check(self, shard: int, n_rows: int, n_actions: int) -> None:
        """ValueError if the patch is not for this shard, or its arrays do not fit together."""
        self.handles.on_host().check(shard, n_rows)
        n_slots = len(self)
        for name, value, shape in (
            ("policy", self.policy, (n_slots, n_actions)),
            ("root_value", self.root_value, (n_slots,)),
        ):
            if tuple(value.shape) != shape:
                raise ValueError(
                    f"{name} of a patch has shape {tuple(value.shape)}, expected {shape} for "
                    f"{n_slots} slots"
                )
        if not -1 <= self.target_version < 2**31:  # as it is stored
            raise ValueError(
                f"target_version of a patch is {self.target_version}, expected -1..{2**31 - 1}"
            )


@dataclass(frozen=True, slots=True)
class PatchReport:
    """What became of the positions of a patch."""

    n_applied: int
    n_stale: int  # evicted since, or as new already
    n_invalid: int  # no shares that sum to 1 over legal actions, or a value that can't be stored


class ReanalysisSource(Protocol):
    """Where a reanalyser gets segments of all shards and sends their new targets."""

    @property
    def n_shards(self) -> int:
        """How many shards take turns."""

    def next(self, n_segments: int) -> Sequence[ReanalysisRequest]:
        """Up to `n_segments` least recently refreshed segments of the shard whose turn it is."""

    def patch(self, patches: Sequence[TargetPatch]) -> int:
        """Send each patch to the shard that its handles name; returns how many positions took."""


def apply_patch(ring: SegmentRing, patch: TargetPatch) -> PatchReport:
    """Write the new targets of the positions that still wait for them; waits for the device."""
    columns, device = ring.columns, ring.device
    slots = upload(patch.handles.slot, device)
    policy = upload(patch.policy, device).to(columns.policy.dtype)
    root_value = upload(patch.root_value, device).to(columns.root_value.dtype)
    is_valid = torch.isfinite(root_value) & torch.isfinite(policy).all(1) & (policy >= 0.0).all(1)
    is_valid &= (policy.float().sum(1) - 1.0).abs() <= POLICY_SUM_ERROR
    generation = upload(patch.handles.generation, device)
    is_wanted = columns.generation.index_select(0, slots) == generation
    if columns.legal is not None:
        is_ruled_out = ((policy > 0.0) & ~columns.legal.index_select(0, slots)).any(1)
        is_valid &= ~(is_ruled_out & is_wanted)  # of another segment, `legal` says nothing
    is_wanted &= columns.target_version.index_select(0, slots) < patch.target_version
    is_applied = is_valid & is_wanted
    n_valid, n_applied = torch.stack((is_valid.sum(), is_applied.sum())).tolist()
    if n_applied:
        rows = slots[is_applied]
        columns.policy.index_copy_(0, rows, policy[is_applied])
        columns.root_value.index_copy_(0, rows, root_value[is_applied])
        columns.target_version.index_fill_(0, rows, patch.target_version)
    return PatchReport(n_applied, n_valid - n_applied, len(patch) - n_valid)


class RefreshQueue:
    """Live segments, the least recently refreshed first.

    A segment goes to the end when it comes in and when it is handed out, answered or not: a
    reanalyser that dies costs its segments one round.
    """

    def __init__(self, segment_ids: Iterable[SegmentId] = ()) -> None:
        self._ids: OrderedDict[SegmentId, None] = OrderedDict.fromkeys(segment_ids)

    @property
    def segment_ids(self) -> list[SegmentId]:
        return list(self._ids)

    def insert(self, segment_id: SegmentId) -> None:
        self._ids[segment_id] = None

    def remove(self, segment_id: SegmentId) -> None:
        """Nothing happens if it is not there."""
        self._ids.pop(segment_id, None)

    def take(self, n_segments: int) -> list[SegmentId]:
        """The first `n_segments`, or all there are, which go to the end."""
        taken = list(islice(self._ids, n_segments))
        for segment_id in taken:
            self._ids.move_to_end(segment_id)
        return taken


def make_request(ring: SegmentRing, stored: StoredSegment, shard: int) -> ReanalysisRequest:
    """Copy a live segment out of the ring; waits for the device."""
    n_steps = stored.n_rows - ring.spec.frame_stack
    steps = slice(stored.start, stored.start + n_steps)
    prompt, options = _texts(ring, steps) if stored.has_text else (None, None)
    slot = np.arange(steps.start, steps.stop)
    return ReanalysisRequest(
        segment_id=stored.segment_id,
        handles=Handles(shard, slot, ring.read("generation", steps).view(np.int64)),
        n_trainable=stored.n_trainable,
        target_version=int(ring.read("target_version", stored.trainable).view(np.int32).min()),
        obs=ring.read_frames(stored),
        action=ring.read("action", steps).view(np.int16),
        legal=ring.read("legal", steps).view(np.bool_) if "legal" in ring.tensors else None,
        prompt=prompt,
        options=options,
    )


def _texts(ring: SegmentRing, steps: slice) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Prompt and options of each step; "" and () where there are none."""
    prompt_ids, option_ids = (ring.arrays[name][steps].tolist() for name in HOST_COLUMNS)
    return (
        tuple("" if text_id == NO_TEXT else ring.prompts[text_id] for text_id in prompt_ids),
        tuple(() if text_id == NO_TEXT else ring.options[text_id] for text_id in option_ids),
    )
