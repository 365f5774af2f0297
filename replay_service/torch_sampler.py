"""Prioritized sampling whose priorities, slots, generations and counters stay on one device.

The host never waits: what is invalid or stale is written to a spare slot of weight 0 instead of
being filtered out. Counters are read by whoever asks for them, which does wait.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replay_service.config import ReplayConfig
from replay_service.placement import download, upload
from replay_service.sampler import PrioritySampler, Sampler
from replay_service.targets import Handles
from replay_service.torch_tree import TorchTree


class TorchSampler:
    """The Sampler of any device, over a TorchTree; called by the Replay that owns it."""

    def __init__(
        self, n_slots: int, *, alpha: float, floor: float, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.tree = TorchTree(n_slots, self.device)
        self._priority = torch.zeros(n_slots + 1, device=self.device)  # the last one is spare
        self._highest = torch.ones((), device=self.device)
        self._n_invalid, self._n_stale = torch.zeros((2,), dtype=torch.int64, device=self.device)
        self._alpha = alpha
        self._floor = floor

    @property
    def n_invalid(self) -> int:
        return int(self._n_invalid)

    @n_invalid.setter
    def n_invalid(self, value: int) -> None:
        self._n_invalid.fill_(value)

    @property
    def n_stale(self) -> int:
        return int(self._n_stale)

    @n_stale.setter
    def n_stale(self, value: int) -> None:
        self._n_stale.fill_(value)

    @property
    def highest(self) -> float:
        return float(self._highest)

    @highest.setter
    def highest(self, value: float) -> None:
        self._highest.fill_(value)

    @property
    def priority(self) -> Tensor:
        """[n_slots] float32."""
        return self._priority[: self.tree.n_slots]

    @property
    def total(self) -> float:
        return self.tree.total

    def insert(self, start: int, priority: NDArray[np.float32]) -> None:
        """Make the slots from `start` on drawable; an invalid priority becomes the highest seen."""
        fresh = upload(priority, self.device)
        is_valid = _is_valid(fresh)
        self._note(fresh, is_valid)
        self._n_invalid += (~is_valid).sum()
        fresh = torch.where(is_valid, fresh, self._highest)
        stop = start + len(fresh)
        self._priority[start:stop] = fresh
        self.tree.set_span(start, stop, self._weights(fresh))

    def remove(self, start: int, stop: int) -> None:
        """Make the slots start .. stop - 1 undrawable."""
        self.tree.set_span(start, stop, 0.0)

    def update(self, slots: Tensor, priority: Tensor, is_current: Tensor | None = None) -> int:
        """Set the priorities of drawable slots; invalid ones are counted and skipped.

        Returns how many were handed in: how many count, the device knows.
        """
        is_valid = _is_valid(priority)
        if is_current is None:
            is_current = torch.ones_like(is_valid)
        self._n_invalid += (is_current & ~is_valid).sum()
        is_valid &= is_current
        self._note(priority, is_valid)
        slots = torch.where(is_valid, slots, self.tree.n_slots)
        self._priority.index_put_((slots,), priority)
        # Read back, so that a slot which repeats has the weight of the priority that stayed.
        weights = self._weights(self._priority.index_select(0, slots))
        self.tree.set_weights(slots, torch.where(is_valid, weights, 0.0))
        return len(slots)

    def write_back(
        self, handles: Handles, priority: NDArray[np.floating] | Tensor, generation: Tensor
    ) -> int:
        """`update` of the slots whose generation is still `generation`'s [n_slots] int64.

        Outdated handles are counted and skipped; so are slots that do not exist.
        """
        slots = upload(handles.slot, self.device)
        inside = slots.clamp(0, self.tree.n_slots - 1)
        is_current = generation.index_select(0, inside) == upload(handles.generation, self.device)
        is_current &= (inside == slots) & (self.tree.leaves.index_select(0, inside) > 0.0)
        self._n_stale += (~is_current).sum()
        return self.update(inside, upload(priority, self.device).float(), is_current)

    def draw(
        self, n_draws: int, n_positions: int, beta: float, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Slots [B] int64, ascending, and importance (n_positions * p)^-beta / max, [B] float32.

        The factor n_positions / total is the same for all, and cancels.
        """
        slots = self.tree.draw(upload(rng.random(n_draws), self.device))
        weights = self.tree.leaves.index_select(0, slots)
        importance = (weights.min() / weights) ** beta
        return slots, importance.float()

    def draw_share(
        self, n_draws: int, rng: np.random.Generator
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """Slots [B] int64, ascending, and the probability [B] float64 that one draw takes each.

        Waits for the device: other shards' draws, elsewhere, are weighed against these.
        """
        slots = self.tree.draw(upload(rng.random(n_draws), self.device))
        weights = download(self.tree.leaves.index_select(0, slots)).astype(np.float64)
        return slots, weights / self.tree.total

    def live_priorities(self, n_slots: int, n_most: int) -> NDArray[np.float32]:
        slots = self.tree.leaves[:n_slots].nonzero().squeeze(1)
        stride = -(-len(slots) // n_most) or 1
        return download(self._priority.index_select(0, slots[::stride])).astype(np.float32)

    def columns(self, n_slots: int) -> tuple[Tensor, Tensor]:
        return self._priority[:n_slots], self.tree.leaves[:n_slots]

    def restore(self, priority: NDArray[np.float32], weights: NDArray[np.float64]) -> None:
        self._priority[: len(priority)] = upload(priority, self.device)
        self.tree.set_span(0, len(weights), upload(weights, self.device))

    def _note(self, priority: Tensor, is_valid: Tensor) -> None:
        highest = torch.where(is_valid, priority, 0.0).amax()
        self._highest.copy_(torch.maximum(self._highest, highest))

    def _weights(self, priority: Tensor) -> Tensor:
        return priority.double().clamp_(min=self._floor) ** self._alpha


def _is_valid(priority: Tensor) -> Tensor:
    return (priority >= 0.0) & (priority < torch.inf)  # NaN is neither


def make_sampler(config: ReplayConfig, n_slots: int, device: torch.device) -> Sampler:
    """The engine that `config` names, or the one that fits the device."""
    alpha, floor = config.exponent, config.priority_floor
    if config.engine == "torch" or device.type != "cpu":
        return TorchSampler(n_slots, alpha=alpha, floor=floor, device=device)
    return PrioritySampler(n_slots, alpha=alpha, floor=floor)
