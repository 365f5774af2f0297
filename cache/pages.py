"""The page tensor: one preallocated block of memory for the keys and values of env steps.

A page holds one step t as two tokens: the action a_{t-1} that led to it in slot 0 and the
observation o_t in slot 1. Page 0 is the null page: always zero, always masked, never written.
Page 1 is the spare page: rows that only fill up a batch write there, never masked; what it holds is
overwritten before it is used.
Reading and writing is by page id, whole pages at a time (`cache.windows`); who owns which page is
decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NULL_PAGE = 0
SPARE_PAGE = 1
N_RESERVED_PAGES = 2
TOKENS_PER_STEP = 2
ACTION_SLOT, OBSERVATION_SLOT = 0, 1
_SHOWN, _HIDDEN = 0.0, float("-inf")


@dataclass(frozen=True, slots=True)
class PageShape:
    """Sizes of one page: [n_layers, 2 (key, value), n_heads, 2 (tokens), head_dim]."""

    n_layers: int
    n_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.head_dim) < 1:
            raise ValueError(f"page sizes must be positive, got {self}")

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        return (self.n_layers, 2, self.n_heads, TOKENS_PER_STEP, self.head_dim)


class Pages:
    """Keys and values by page id.

    kv:     [P, L, 2 (k, v), H, 2 (tokens), D] of `dtype`
    strips: the same memory [P * strips_per_page, 2 * D]: keys or values of one layer and head
    mask:   [P, 2] of `dtype`, 0; minus infinity where a slot holds no token (null page, action slot
            of a first step). Such a slot holds zeros, so that a masked read never meets a NaN.
    """

    def __init__(
        self,
        n_pages: int,
        shape: PageShape,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        debug: bool = False,
    ) -> None:
        if n_pages < 2:
            raise ValueError(f"n_pages counts the null page and must be at least 2, got {n_pages}")
        self.shape = shape
        fresh = float("nan") if debug else 0.0  # debug: reading an unwritten page shows as NaN
        self.kv = torch.full((n_pages, *shape.dims), fresh, device=device, dtype=dtype)
        self.kv[NULL_PAGE] = 0.0
        self.strips = self.kv.view(-1, TOKENS_PER_STEP * shape.head_dim)
        self.strips_per_page = len(self.strips) // n_pages
        self.mask = torch.full((n_pages, TOKENS_PER_STEP), _HIDDEN, device=device, dtype=dtype)
        self.mask[SPARE_PAGE] = _SHOWN
        self.page_bytes = self.kv[NULL_PAGE].numel() * self.kv.element_size()
        self._debug = debug

    def __len__(self) -> int:
        return self.kv.shape[0]

    @property
    def size_bytes(self) -> int:
        return len(self) * self.page_bytes

    def mark(self, ids: Tensor, has_action: Tensor | bool) -> None:
        """Declare which tokens pages `ids` [M] have; `has_action` [M] is False at a first step."""
        self.mask[ids, OBSERVATION_SLOT] = _SHOWN
        shown = torch.as_tensor(has_action, device=ids.device).expand(ids.shape)
        self.mask[ids, ACTION_SLOT] = torch.where(shown, _SHOWN, _HIDDEN).to(self.mask.dtype)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy pages `source` [M] over pages `target` [M], masks included."""
        self.kv.index_copy_(0, target, self.kv.index_select(0, source))
        self.mask.index_copy_(0, target, self.mask.index_select(0, source))

    def wipe(self, ids: Tensor) -> None:
        """Forget pages `ids` [M]; under debug their content becomes NaN."""
        self.mask[ids] = _HIDDEN
        if self._debug:
            self.kv[ids] = float("nan")
