"""Float64 weights drawn in proportion: a 16-ary sum tree on the host, with numba kernels.

The kernels release the GIL and are serial. Parents are recomputed from their children, never
adjusted by differences, so sums do not drift and equal leaves give an equal tree.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Children per node: two cache lines of float64, which the kernels below count on. A prototype with
# 8 was a tenth faster and needed more memory.
FAN_OUT = 16


# A walk along a level whose nodes number up to this many a draw costs less than the levels above.
NODES_WALKED_PER_DRAW = 4


@njit(nogil=True, cache=True)
def _sum_of_node(tree: NDArray[np.float64], first: int) -> float:
    """Sum of the FAN_OUT weights from `first` on, always in the same order; four chains of sums."""
    a = tree[first] + tree[first + 1] + tree[first + 2] + tree[first + 3]
    b = tree[first + 4] + tree[first + 5] + tree[first + 6] + tree[first + 7]
    c = tree[first + 8] + tree[first + 9] + tree[first + 10] + tree[first + 11]
    d = tree[first + 12] + tree[first + 13] + tree[first + 14] + tree[first + 15]
    return (a + b) + (c + d)  # type: ignore[no-any-return]


@njit(nogil=True, cache=True)
def _refresh_parents(
    tree: NDArray[np.float64], offsets: NDArray[np.int64], slots: NDArray[np.int64]
) -> None:
    """Recompute what lies above `slots`, level by level; neighbours in `slots` share the work."""
    nodes = slots // FAN_OUT
    n_nodes = len(nodes)
    for level in range(1, len(offsets)):
        n_next = 0
        last = -1
        for i in range(n_nodes):
            node = nodes[i]
            if node != last:
                tree[offsets[level] + node] = _sum_of_node(
                    tree, offsets[level - 1] + node * FAN_OUT
                )
                nodes[n_next] = node // FAN_OUT
                n_next += 1
                last = node
        n_nodes = n_next


@njit(nogil=True, cache=True)
def _refresh_span(
    tree: NDArray[np.float64], offsets: NDArray[np.int64], start: int, stop: int
) -> None:
    low, high = start, stop - 1
    for level in range(1, len(offsets)):
        low //= FAN_OUT
        high //= FAN_OUT
        for node in range(low, high + 1):
            tree[offsets[level] + node] = _sum_of_node(tree, offsets[level - 1] + node * FAN_OUT)


@njit(nogil=True, cache=True)
def _walk(
    weights: NDArray[np.float64], masses: NDArray[np.float64], nodes: NDArray[np.int64]
) -> None:
    """nodes[i] = where ascending masses[i] falls; what of it lies inside replaces masses[i].

    Rounding may carry a mass past the last share: then it is put at the right edge of the last
    positive weight.
    """
    i = 0
    left = 0.0
    last = 0
    for node in range(len(weights)):
        right = left + weights[node]
        while i < len(masses) and masses[i] < right:
            masses[i] -= left
            nodes[i] = node
            i += 1
        if weights[node] > 0.0:
            last = node
        left = right
    for rest in range(i, len(masses)):
        masses[rest] = np.nextafter(weights[last], 0.0)
        nodes[rest] = last


@njit(nogil=True, cache=True)
def _descend(
    weights: NDArray[np.float64], masses: NDArray[np.float64], nodes: NDArray[np.int64]
) -> None:
    """Replace nodes[i] by that child of it in whose share masses[i] falls; masses as in `_walk`.

    Without branches, which would be mispredicted: first the quarter of the children, then the
    child. Comparisons count 0 or 1. A child of weight 0 is never chosen.
    """
    for i in range(len(masses)):
        first = nodes[i] * FAN_OUT
        rest = masses[i]
        a = weights[first] + weights[first + 1] + weights[first + 2] + weights[first + 3]
        b = weights[first + 4] + weights[first + 5] + weights[first + 6] + weights[first + 7]
        c = weights[first + 8] + weights[first + 9] + weights[first + 10] + weights[first + 11]
        past_a = np.int64(rest >= a)
        past_b = np.int64(rest >= a + b)
        past_c = np.int64(rest >= a + b + c)
        rest -= a * past_a + b * past_b + c * past_c
        child = 4 * (past_a + past_b + past_c)
        a = weights[first + child]
        b = weights[first + child + 1]
        c = weights[first + child + 2]
        share = a + b + c + weights[first + child + 3]
        past_a = np.int64(rest >= a)
        past_b = np.int64(rest >= a + b)
        past_c = np.int64(rest >= a + b + c)
        if rest < share:
            child += past_a + past_b + past_c
            rest -= a * past_a + b * past_b + c * past_c
        else:  # rounded past the last share
            child = np.int64(FAN_OUT - 1)
            while weights[first + child] <= 0.0:
                child -= 1
            rest = np.nextafter(weights[first + child], 0.0)
        masses[i] = rest
        nodes[i] = nodes[i] * FAN_OUT + child


@njit(nogil=True, cache=True)
def _fetch(weights: NDArray[np.float64], nodes: NDArray[np.int64]) -> float:
    """Read both cache lines of every node, in a loop so short that many reads are under way.

    `_descend` then finds them in cache; alone it has too few of them under way and takes up to
    twice as long. The sum is returned so that the compiler keeps the reads.
    """
    total = 0.0
    for i in range(len(nodes)):
        first = nodes[i] * FAN_OUT
        total += weights[first] + weights[first + FAN_OUT // 2]
    return total


@njit(nogil=True, cache=True)
def _find(
    tree: NDArray[np.float64],
    offsets: NDArray[np.int64],
    masses: NDArray[np.float64],
    slots: NDArray[np.int64],
) -> float:
    """slots[i] = the leaf in whose share of the cumulated weights ascending masses[i] falls.

    A leaf of weight 0 is never chosen. `masses` are used up; the result means nothing.
    """
    level = len(offsets) - 1
    n_walked = NODES_WALKED_PER_DRAW * len(masses)
    while level > 0 and offsets[level] - offsets[level - 1] <= n_walked:
        level -= 1
    stop = offsets[level + 1] if level + 1 < len(offsets) else len(tree)
    _walk(tree[offsets[level] : stop], masses, slots)
    fetched = 0.0
    for below in range(level - 1, -1, -1):
        weights = tree[offsets[below] :]
        fetched += _fetch(weights, slots)
        _descend(weights, masses, slots)
    return fetched


class SumTree:
    """Non-negative float64 weights of `n_slots` leaves, drawn in proportion to them."""

    def __init__(self, n_slots: int) -> None:
        sizes = [-(-n_slots // FAN_OUT) * FAN_OUT]
        while sizes[-1] > FAN_OUT:
            sizes.append(-(-(sizes[-1] // FAN_OUT) // FAN_OUT) * FAN_OUT)
        self.n_slots = n_slots
        self._offsets = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int64)
        n_weights = sum(sizes)
        with_slack = np.zeros(n_weights + FAN_OUT, dtype=np.float64)
        # A node begins with a cache line: it then has two, not three.
        start = -with_slack.ctypes.data // with_slack.itemsize % FAN_OUT
        self._tree = with_slack[start : start + n_weights]

    @property
    def leaves(self) -> NDArray[np.float64]:
        """[n_slots] float64 view; write through `set_weights` or `set_span` only."""
        return self._tree[: self.n_slots]

    @property
    def n_bytes(self) -> int:
        return self._tree.nbytes

    @property
    def total(self) -> float:
        return float(self._tree[self._offsets[-1] :].sum())

    def set_weights(self, slots: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Set single leaves; where a slot repeats, its last weight stays."""
        self._tree[slots] = weights
        _refresh_parents(self._tree, self._offsets, slots)

    def set_span(self, start: int, stop: int, weights: NDArray[np.float64] | float) -> None:
        """Set the leaves start .. stop - 1."""
        if stop > start:
            self._tree[start:stop] = weights
            _refresh_span(self._tree, self._offsets, start, stop)

    def draw(self, n_draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Stratified draw of `n_draws` leaves, ascending; the total must be positive."""
        total = self.total
        assert total > 0.0, f"drawing from a tree of total weight {total}"
        masses = (np.arange(n_draws) + rng.random(n_draws)) * (total / n_draws)
        slots = np.empty(n_draws, dtype=np.int64)
        _find(self._tree, self._offsets, masses, slots)
        return slots
