"""The sum tree in torch operations: the counterpart of `sum_tree.SumTree` for any device.

Slots are drawn, and sums refreshed, without the host ever waiting for the device. Float64
throughout; parents are recomputed from their children, never adjusted by differences.
Cost on CUDA is that of some 35 kernel launches a draw, at any size up to 1e8 slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Children per node, and how many nodes the flat top may have. On a CPU reading the top costs more
# than one level more; on CUDA a level costs ten launches and reading two million sums costs few.
FAN_OUT = {"cpu": 32, "cuda": 64}
FLAT_LIMIT = {"cpu": 4_096, "cuda": 1 << 21}


class TorchTree:
    """Non-negative float64 weights of `n_slots` leaves, drawn in proportion to them.

    levels[0] holds the leaves as [R, K], levels[i] the row sums of levels[i - 1] in the same
    layout, `top` [R'] the row sums of the last level. At least one spare leaf of weight 0 follows
    the last slot.
    """

    def __init__(
        self,
        n_slots: int,
        device: torch.device | str = "cpu",
        *,
        fan_out: int | None = None,
        flat_limit: int | None = None,
    ) -> None:
        self.n_slots = n_slots
        self.device = torch.device(device)
        self._fan_out = fan_out or FAN_OUT[self.device.type]
        n_rows = -(-(n_slots + 1) // self._fan_out)
        self._levels = [self._zeros(n_rows, self._fan_out)]
        while n_rows > (flat_limit or FLAT_LIMIT[self.device.type]):
            n_rows = -(-n_rows // self._fan_out)
            self._levels.append(self._zeros(n_rows, self._fan_out))
        self._top = self._zeros(n_rows)
        self._zero = self._zeros()
        self._strata = self._zeros(0)

    @property
    def leaves(self) -> Tensor:
        """[n_slots] float64 view; write through `set_weights` or `set_span` only."""
        return self._levels[0].view(-1)[: self.n_slots]

    @property
    def total(self) -> float:
        """Waits for the device."""
        return float(self._top.sum())

    @property
    def n_bytes(self) -> int:
        return 8 * (self._top.numel() + sum(level.numel() for level in self._levels))

    def set_weights(self, slots: Tensor, weights: Tensor) -> None:
        """Set single leaves; of a slot that repeats, one of its weights stays.

        Slot n_slots is a spare leaf: give it weight 0 to have no effect.
        """
        self._levels[0].view(-1).index_put_((slots,), weights)
        rows = slots
        for level, parents in self._with_parents():
            rows = rows // self._fan_out
            parents.index_put_((rows,), level.index_select(0, rows).sum(1))

    def set_span(self, start: int, stop: int, weights: Tensor | float) -> None:
        """Set the leaves start .. stop - 1."""
        if stop <= start:
            return
        self._levels[0].view(-1)[start:stop] = weights
        low, high = start, stop - 1
        for level, parents in self._with_parents():
            low, high = low // self._fan_out, high // self._fan_out
            parents[low : high + 1] = level[low : high + 1].sum(1)

    def draw(self, uniforms: Tensor) -> Tensor:
        """Stratified draw: of `uniforms` [B] float64 in [0, 1), B slots [B] int64, ascending.

        The total must be positive; that is not checked, since a check would wait for the device.
        """
        n_draws = len(uniforms)
        if len(self._strata) != n_draws:
            self._strata = torch.arange(n_draws, dtype=torch.float64, device=self.device)
        cumulated = self._top.cumsum(0)
        total = cumulated[-1]
        masses = (self._strata + uniforms) * (total / n_draws)
        rows = torch.searchsorted(cumulated, masses, right=True).clamp_(max=len(cumulated) - 1)
        rows = self._to_positive(rows)
        rest = masses - (cumulated.index_select(0, rows) - self._top.index_select(0, rows))
        for level in reversed(self._levels):
            weights = level.index_select(0, rows)
            child, rest = self._pick(weights, rest)
            rows = rows * self._fan_out + child
        return rows

    def _to_positive(self, rows: Tensor) -> Tensor:
        """Each entry of the top itself where it is positive, else the nearest positive before it.

        Rounding can find an empty entry: by a mass rounded up to the total, or since a parallel
        prefix sum is not exactly monotone.
        """
        rank = (self._top > 0.0).cumsum(0)  # of the positive entries, counting from 1
        wanted = rank.index_select(0, rows).clamp_(min=1)
        return torch.searchsorted(rank, wanted)

    def _pick(self, weights: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row of `weights` [B, K] the child in whose share `rest` [B] falls.

        Returns the children [B] and what of `rest` lies inside them.
        """
        # An empty child gets the prefix sum of the positive one before it (none: -inf), and `rest`
        # ends below the last prefix sum: neither can then be found, however sums were rounded.
        cumulated = weights.cumsum(1).masked_fill_(weights <= 0.0, -torch.inf).cummax(1).values
        rest = torch.minimum(rest, torch.nextafter(cumulated[:, -1], self._zero)).unsqueeze(1)
        child = torch.searchsorted(cumulated, rest, right=True)
        left = cumulated.gather(1, child) - weights.gather(1, child)
        return child.squeeze(1), (rest - left).squeeze(1)

    def _with_parents(self) -> list[tuple[Tensor, Tensor]]:
        """Each level with the flat view of the sums above it, from the leaves up."""
        parents = [level.view(-1) for level in self._levels[1:]] + [self._top]
        return list(zip(self._levels, parents, strict=True))

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)
