"""Windows of pages in the order in which attention multiplies them, and their way back.

A page keeps the keys (or values) of one layer and head side by side for its two tokens. So a window
is one list of indices over such strips, and one `index_select` brings it to where attention reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cache.pages import SPARE_PAGE, TOKENS_PER_STEP, Pages


class Windows:
    """C + 1 pages of each of N rows: C earlier ones, and last the one that is being made.

    kv:   [L, 2 (k, v), N, H, C + 1, 2 (tokens), D]
    mask: [N, C + 1, 2 (tokens)], 0 where there is a token to be read, else minus infinity
    Buffers that stay where they are.
    """

    def __init__(self, pages: Pages, n_rows: int, n_steps: int) -> None:
        shape, device = pages.shape, pages.kv.device
        n_layers, n_heads, n_columns = shape.n_layers, shape.n_heads, n_steps + 1
        self._pages = pages
        strips = (n_layers, 2, n_rows, n_heads, n_columns)
        self.kv = pages.kv.new_zeros(*strips, TOKENS_PER_STEP, shape.head_dim)
        self.mask = pages.mask.new_zeros(n_rows, n_columns, TOKENS_PER_STEP)
        self._strips = self.kv.view(-1, TOKENS_PER_STEP * shape.head_dim)
        self._own_strips = self.kv[..., -1, :, :].flatten(-2).flatten(0, 3)
        self._flat_mask = self.mask.view(-1, TOKENS_PER_STEP)
        self._ids = torch.full((n_rows, n_columns), SPARE_PAGE, device=device)
        self._flat_ids, self._row_ids = self._ids.view(-1), self._ids[:, None]
        in_page = torch.arange(pages.strips_per_page, device=device)
        self._in_page = in_page.view(n_layers, 2, 1, n_heads, 1)
        self._index = torch.zeros(strips, dtype=torch.int64, device=device)
        self._flat_index, self._own_index = self._index.view(-1), self._index[..., -1].flatten()

    def read(self, ids: Tensor) -> None:
        """Take in pages `ids` [N, C + 1] int64; the earlier ones in any order: keys carry theirs.

        Of the last, only the mask counts, so `Pages.mark` comes before.
        """
        pages = self._pages
        self._ids.copy_(ids)
        torch.add(self._in_page, self._row_ids, alpha=pages.strips_per_page, out=self._index)
        torch.index_select(pages.strips, 0, self._flat_index, out=self._strips)
        torch.index_select(pages.mask, 0, self._flat_ids, out=self._flat_mask)

    def write(self) -> None:
        """Fill the last page of every row; all but spare ones are distinct."""
        self._pages.strips.index_copy_(0, self._own_index, self._own_strips)
