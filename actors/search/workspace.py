"""Buffers of a search of B roots, allocated once per batch size and reused by every simulation."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.search.tree import Leaves, make_tree
from cache.pages import TOKENS_PER_STEP, Pages


class Workspace:
    """Trees, and the page ids, actions and steps that go to the model's device in one transfer.

    The host side of the transfer is `leaves`, numpy views of one int64 buffer that the selection
    kernel fills. On the CPU the device side is the same memory.
    """

    def __init__(
        self,
        n_roots: int,
        n_simulations: int,
        n_actions: int,
        n_context: int,
        pages: Pages,
        device: torch.device,
    ) -> None:
        self.tree = make_tree(n_roots, n_simulations, n_actions, n_context)
        pinned = device.type == "cuda"
        self._host = torch.zeros((n_context + 3) * n_roots, dtype=torch.int64, pin_memory=pinned)
        self._ids = self._host if device.type == "cpu" else self._host.to(device)
        n_window = n_context * n_roots
        host = self._host.numpy()
        page, action, step = host[n_window:].reshape(3, n_roots)
        self.leaves = Leaves(host[:n_window].reshape(n_roots, n_context), page, action, step)
        self.window_ids = self._ids[:n_window]
        self._page, self._action, self._step = self._ids[n_window:].reshape(3, n_roots)
        self.flat_kv = torch.zeros(
            (n_window, *pages.shape.dims), device=device, dtype=pages.kv.dtype
        )
        self.flat_valid = torch.zeros((n_window, TOKENS_PER_STEP), device=device, dtype=torch.bool)
        self.kv = self.flat_kv.unflatten(0, (n_roots, n_context))
        self.valid = self.flat_valid.unflatten(0, (n_roots, n_context))
        self.has_action = torch.ones(n_roots, device=device, dtype=torch.bool)

    def upload(self) -> tuple[Tensor, Tensor, Tensor]:
        """Action, step and page [B] of the leaves, on the model's device."""
        if self._ids is not self._host:
            self._ids.copy_(self._host, non_blocking=True)
        return self._action, self._step, self._page
