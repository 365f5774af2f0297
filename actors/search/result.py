"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from actors.search.tree_picture import TreePicture


@dataclass(frozen=True, slots=True)
class SearchStats:
    """Cost and health of one search call over B roots."""

    simulations: int  # B * n_simulations, less the visits of reused subtrees
    seconds_model: float  # inside the world model, root and rebuilds included
    seconds_tree: float  # inside the tree kernels
    seconds_total: float  # the rest is plumbing: gathering pages, copies, checks
    n_rebuilt: int  # roots whose window was rebuilt from raw tokens
    n_failed: int  # roots that met NaN or infinity and fell back to their prior


@dataclass(frozen=True, slots=True)
class SearchOutput:
    """Result of one batched search over B roots with A actions; numpy, rows as in the call.

    weight_version: of the model that searched
    action:       [B] int64, to be played
    visit_counts: [B, A] int32, sums to n_simulations, zero for illegal actions
    policy:       [B, A] float32, what the search teaches: visit shares (PUCT) or the improved
                  policy (Gumbel); the root prior itself for a failed row
    root_value:   [B] float32, mean return over the simulations and the model's own estimate
    q_value:      [B, A] float32, in units of return; 0 where unvisited
    model_policy: [B, A] float32, the world model's own policy over legal actions
    root_prior:   [B, A] float32, what the search started from, before noise
    depth_max:    [B] int32, edges on the longest path
    tree:         of the row `tree_row`, where somebody asked to see it
    """

    weight_version: int
    action: NDArray[np.int64]
    visit_counts: NDArray[np.int32]
    policy: NDArray[np.float32]
    root_value: NDArray[np.float32]
    q_value: NDArray[np.float32]
    model_policy: NDArray[np.float32]
    root_prior: NDArray[np.float32]
    depth_max: NDArray[np.int32]
    stats: SearchStats
    tree: TreePicture | None = None
    tree_row: int | None = None

    def advantage(self, row: int) -> NDArray[np.float32]:
        """[A] what the search found each action worth above the root; 0 where it did not look."""
        above = self.q_value[row] - self.root_value[row]
        return np.where(self.visit_counts[row] > 0, above, 0.0).astype(np.float32)

    def rows(self, chosen: slice, stats: SearchStats) -> SearchOutput:
        """The result of some rows alone, with statistics of their own."""
        alone = ("weight_version", "stats", "tree", "tree_row")
        names = [f.name for f in fields(self) if f.name not in alone]
        return replace(self, stats=stats, **{name: getattr(self, name)[chosen] for name in names})
