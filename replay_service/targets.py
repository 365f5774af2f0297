"""Training batches: windows of H unroll and n bootstrap steps, their masks and n-step targets.

Everything is built from ring columns with a fixed number of tensor operations, no loop over items;
it runs on whichever device the columns live on. Cost: the gather of the observations dominates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay_service.placement import download

# Positions in a ring: on the host, or on the device that draws them and never shows them the host.
Indices: TypeAlias = "NDArray[np.int64] | Tensor"

ENDING_OPEN = 0  # the data stops here, the episode goes on (or its rest was lost)
ENDING_TERMINATED = 1
ENDING_TRUNCATED = 2


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """Shape of a training window; acting needs it for the overlap of segments."""

    unroll_steps: int = 5  # H, steps the world model is trained on per sample; more costs compute
    n_step: int = 5  # n, rewards summed before bootstrapping; more is less bias, more variance
    discount: float = 0.997  # gamma per step; closer to 1 looks further ahead

    def __post_init__(self) -> None:
        if self.unroll_steps < 1:
            raise ValueError(f"unroll_steps must be at least 1, got {self.unroll_steps}")
        if self.n_step < 1:
            raise ValueError(f"n_step must be at least 1, got {self.n_step}")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")

    @property
    def context_steps(self) -> int:
        """Steps after a start position that a sample may read; segments overlap by this."""
        return self.unroll_steps + self.n_step


@dataclass(frozen=True, slots=True)
class Handles:
    """Where the priorities of a batch go back to.

    slot, generation: [B] int64; a slot whose generation moved on holds another position now. Of a
                      replay on a GPU they are tensors there; pickled, they are numpy arrays.
    """

    shard: int
    slot: Indices
    generation: Indices

    def __len__(self) -> int:
        return len(self.slot)

    def check(self, shard: int, n_slots: int) -> None:
        """ValueError unless these are slots of shard `shard`, which has `n_slots`."""
        slot = self.slot
        if slot.shape != self.generation.shape:
            raise ValueError(
                f"handles have slots of shape {tuple(slot.shape)} and generations of shape "
                f"{tuple(self.generation.shape)}; expected the same [B]"
            )
        if self.shard != shard:
            raise ValueError(
                f"handles belong to shard {self.shard}, this is {shard}; send them to the shard "
                "that the positions came from"
            )
        # Slots that are tensors are not looked at here: that would wait for their device.
        if not isinstance(slot, np.ndarray) or len(slot) == 0:
            return
        if not 0 <= slot.min() <= slot.max() < n_slots:
            raise ValueError(f"slot must lie in 0..{n_slots - 1}, got {slot}")

    def on_host(self) -> Handles:
        """The same as numpy arrays; waits for the device if they are not."""
        if isinstance(self.slot, np.ndarray) and isinstance(self.generation, np.ndarray):
            return self
        slot, generation = (
            download(column).astype(np.int64, copy=False) for column in (self.slot, self.generation)
        )
        return Handles(self.shard, slot, generation)

    def __reduce__(self) -> tuple[object, ...]:
        held = self.on_host()
        return Handles, (held.shard, held.slot, held.generation)


# Of a batch: of one shard, or of several, one part after the other as its samples lie.
BatchHandles: TypeAlias = Handles | tuple[Handles, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows of H unroll steps (and n bootstrap steps), A actions; all tensors on one device.

    obs:                [B, H+n, *stacked_shape] uint8, float32 or int32, o_T repeated beyond an end
    action:             [B, H+n-1] int64, random beyond an end
    reward:             [B, H] float32, 0 beyond an end
    n_step_return:      [B, H] float32, sum of gamma^i r_{k+i}, i < m = min(n, steps to the end)
    bootstrap_discount: [B, H] float32, gamma^m, 0 where a terminal was met
    bootstrap_index:    [B, H] int64, position k + m in obs
    policy:             [B, H, A] float32, visit shares; an all-zero row is no policy target
    root_value:         [B, H] float32, search values as stored
    valid:              [B, H] bool, steps that count in the losses
    importance:         [B] float32, at most 1
    weight_version:     [B] int64, oldest version that acted in the window's segment
    target_version:     [B] int64, version that the start's policy and value were searched with;
                        newer than weight_version where they were searched again
    legal:              [B, H, A] bool, or None when every action is always legal

    After a terminal the episode goes on in an absorbing state: o_T, reward 0, value target 0,
    no policy target, valid. After a truncation (or the end of the data) steps are not valid.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    n_step_return: Tensor
    bootstrap_discount: Tensor
    bootstrap_index: Tensor
    policy: Tensor
    root_value: Tensor
    valid: Tensor
    importance: Tensor
    weight_version: Tensor
    target_version: Tensor
    handles: BatchHandles
    legal: Tensor | None = None

    def __len__(self) -> int:
        return len(self.obs)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on `device`; the handles stay where they are."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in self._tensors().items()
        }
        return Batch(handles=self.handles, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def __reduce__(self) -> tuple[object, ...]:
        # As numpy arrays the bytes travel out of band: Ray writes them once, the reader maps them.
        # There and back for 64 windows of 10 frames: 0.5 ms, by torch's own pickling 6.8 ms.
        arrays = {name: value.cpu().numpy() for name, value in self._tensors().items()}
        return _batch_from_arrays, (arrays, self.handles)


def _batch_from_arrays(arrays: dict[str, NDArray[np.generic]], handles: BatchHandles) -> Batch:
    # Mapped arrays are read-only and pin the object store while a view lives: copy, let go.
    tensors = {
        name: torch.from_numpy(array if array.flags.writeable else array.copy())
        for name, array in arrays.items()
    }
    return Batch(handles=handles, **tensors)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Prompts with the search's answer to them, for training the language model.

    prompt: B texts; options: B rows of A texts; policy: [B, A] float32, visit shares
    action: [B] int64, what was played; advantage: [B, A] float32 as in Segment, None if not kept
    """

    prompt: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    policy: Tensor
    action: Tensor
    advantage: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Ring storage as tensors, one row per step, R rows; A actions, F = frame_stack.

    A segment of T steps takes the rows start .. start+T+F-1. Row start+t says where frame t is and
    holds the scalars of step t; the observation of step t is the frames of rows start+t ..
    start+t+F-1. Frames are held apart, N of them, since rows share them.
    The F rows from start+T on hold the rest of the frames and neutral scalars: action, reward,
    policy and root_value 0, every action legal.

    obs: [N, *obs_shape]; frame: [R] int32, which of them is the row's
    action: [R] int16; reward: [R] float32; legal: [R, A] bool or None
    policy: [R, A], root_value: [R], both float16 or, by `replay.scalars`, float32
    end: [R] int64, start + T of the row's segment; ending: [R] int8, how it ends (ENDING_*)
    weight_version: [R] int32, oldest version that played the row's segment
    target_version: [R] int32, version that policy and root_value were searched with: the one that
                    played, until a patch brings newer ones
    generation: [R] int64, grows when the row's segment is evicted
    """

    obs: Tensor
    frame: Tensor
    action: Tensor
    reward: Tensor
    policy: Tensor
    root_value: Tensor
    end: Tensor
    ending: Tensor
    weight_version: Tensor
    target_version: Tensor
    generation: Tensor
    legal: Tensor | None


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the steps of a batch lie, P = H + n positions a window.

    rows:   [B] int64, where the windows start
    wanted: [B, P] int64, rows of the steps, which may run beyond the end of their segment
    held:   [B, P] int64, the same with the end's row, whose scalars are neutral, beyond it
    end, terminated: [B, 1], of the segment
    """

    rows: Tensor
    wanted: Tensor
    held: Tensor
    end: Tensor
    terminated: Tensor


class WindowBuilder:
    """Builds batches from columns; owned by one Replay, holds only constants."""

    def __init__(
        self, config: TargetConfig, frame_stack: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self._frame_stack = frame_stack
        self._steps = torch.arange(config.context_steps, device=device)
        self._frames = torch.arange(frame_stack, device=device)
        # float64: gamma^m is rounded once, to the float32 that the loss sees.
        powers = config.discount ** np.arange(config.n_step + 1, dtype=np.float64)
        self._powers = torch.from_numpy(powers.astype(np.float32)).to(device)

    def locate(self, columns: Columns, rows: Tensor) -> Windows:
        """The windows that start at `rows` [B] int64."""
        end = columns.end.index_select(0, rows).unsqueeze(1)
        terminated = (columns.ending.index_select(0, rows) == ENDING_TERMINATED).unsqueeze(1)
        wanted = rows.unsqueeze(1) + self._steps
        return Windows(rows, wanted, torch.minimum(wanted, end), end, terminated)

    def gather(self, columns: Columns, windows: Windows) -> Tensor:
        """The observations, [B, P, *stacked_shape]."""
        rows = windows.held.unsqueeze(-1) + self._frames  # [B, P, F]
        frames = columns.obs.index_select(0, columns.frame.index_select(0, rows.view(-1)))
        channels = columns.obs.shape[1] * self._frame_stack
        return frames.view(*windows.held.shape, channels, *columns.obs.shape[2:])

    def build(
        self,
        columns: Columns,
        windows: Windows,
        obs: Tensor,
        filler_action: Tensor,
        *,
        importance: Tensor,
        handles: Handles,
    ) -> Batch:
        """All the rest; `filler_action` [B, H+n-1] int64 goes beyond ends."""
        n_unroll, n_step = self.config.unroll_steps, self.config.n_step
        wanted, held, end = windows.wanted, windows.held, windows.end
        is_step = wanted < end

        flat_steps = held[:, :-1].reshape(-1)
        action = columns.action.index_select(0, flat_steps).view_as(filler_action).long()
        reward = columns.reward.index_select(0, flat_steps).view_as(filler_action)
        unroll = held[:, :n_unroll].reshape(-1)
        shape = (len(held), n_unroll)
        legal = columns.legal
        n_ahead = (end - wanted[:, :n_unroll]).clamp(0, n_step)
        power = self._powers.index_select(0, n_ahead.view(-1)).view(shape)
        met_terminal = windows.terminated & (wanted[:, :n_unroll] + n_step >= end)
        return Batch(
            obs=obs,
            action=torch.where(is_step[:, :-1], action, filler_action),
            reward=reward[:, :n_unroll].contiguous(),
            # Not a matrix product: a GPU may be set to round its factors to ten bits.
            n_step_return=(reward.unfold(1, n_step, 1) * self._powers[:n_step]).sum(-1),
            bootstrap_discount=power.masked_fill_(met_terminal, 0.0),
            bootstrap_index=self._steps[:n_unroll] + n_ahead,
            policy=columns.policy.index_select(0, unroll).float().view(*shape, -1),
            root_value=columns.root_value.index_select(0, unroll).float().view(shape),
            valid=is_step[:, :n_unroll] | windows.terminated,
            importance=importance,
            weight_version=columns.weight_version.index_select(0, windows.rows).long(),
            target_version=columns.target_version.index_select(0, windows.rows).long(),
            handles=handles,
            legal=None if legal is None else legal.index_select(0, unroll).view(*shape, -1),
        )
