"""The page tensor: one preallocated block of memory for the keys and values of env steps.

A page holds one step t as two tokens: the action a_{t-1} that led to it in slot 0 and the
observation o_t in slot 1. Page 0 is the null page: always zero, never valid, never written.
Page 1 is the spare page: rows that only fill up a batch write there, and nobody reads it.
Reading and writing is by page id, whole pages at a time; who owns which page is decided elsewhere.
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


@dataclass(frozen=True, slots=True)
class PageShape:
    """Sizes of one page: [n_layers, 2 (key, value), 2 (tokens), n_heads, head_dim]."""

    n_layers: int
    n_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.head_dim) < 1:
            raise ValueError(f"page sizes must be positive, got {self}")

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        return (self.n_layers, 2, TOKENS_PER_STEP, self.n_heads, self.head_dim)


class Pages:
    """Keys and values by page id.

    kv:    [P, L, 2 (k, v), 2 (tokens), H, D] of `dtype`
    valid: [P, 2] bool; False where a slot holds no token (null page, action slot of a first step)
    A slot that is not valid holds zeros, so that a masked read never meets a NaN.
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
        self.valid = torch.zeros((n_pages, TOKENS_PER_STEP), device=device, dtype=torch.bool)
        self.page_bytes = self.kv[NULL_PAGE].numel() * self.kv.element_size()
        self._debug = debug

    def __len__(self) -> int:
        return self.kv.shape[0]

    @property
    def size_bytes(self) -> int:
        return len(self) * self.page_bytes

    def gather(self, ids: Tensor, kv_out: Tensor, valid_out: Tensor) -> None:
        """Copy pages `ids` [M] int64 into `kv_out` [M, *page] and `valid_out` [M, 2]."""
        torch.index_select(self.kv, 0, ids, out=kv_out)
        torch.index_select(self.valid, 0, ids, out=valid_out)

    def write(self, ids: Tensor, kv: Tensor) -> None:
        """Fill pages `ids` [M] from `kv` [M, *page].

        `mark` sets validity; it is apart because tree pages are marked once per search.
        """
        self.kv.index_copy_(0, ids, kv)

    def mark(self, ids: Tensor, has_action: Tensor | bool) -> None:
        """Declare pages `ids` [M] written; `has_action` [M] bool is False at an episode's start."""
        self.valid[ids, OBSERVATION_SLOT] = True
        self.valid[ids, ACTION_SLOT] = has_action

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy pages `source` [M] over pages `target` [M], validity included."""
        self.kv.index_copy_(0, target, self.kv.index_select(0, source))
        self.valid.index_copy_(0, target, self.valid.index_select(0, source))

    def wipe(self, ids: Tensor) -> None:
        """Forget pages `ids` [M]; under debug their content becomes NaN."""
        self.valid[ids] = False
        if self._debug:
            self.kv[ids] = float("nan")
