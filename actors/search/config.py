"""Settings of the search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cache.pool import Eviction


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Tree search of one planner.

    PUCT constants as in MuZero (arXiv 1911.08265, appendix B), Gumbel's as in Danihelka et al.
    (ICLR 2022).
    """

    n_simulations: int = 25  # visits per search; more is stronger and slower
    leaves_per_call: int = 1  # leaves of a tree per model call; more is faster, less directed
    reuse_tree: bool = False  # keep the played move's subtree; saves calls, its values are older

    variant: Literal["puct", "gumbel"] = "puct"  # Gumbel learns from few simulations

    pb_c_base: float = 19652.0  # visits at which exploration starts to grow
    pb_c_init: float = 1.25  # weight of the prior against the value; higher explores more
    dirichlet_alpha: float = 0.3  # concentration of root noise; lower is spikier
    dirichlet_fraction: float = 0.25  # share of noise in the root prior when noise is asked for
    value_delta_max: float = 0.01  # smallest value range that is stretched to [0, 1]

    max_considered_actions: int = 16  # Gumbel: root actions that share the simulations
    gumbel_scale: float = 1.0  # Gumbel: noise of root actions while acting; 0 plays without chance
    q_weight_visits: float = 50.0  # Gumbel: visits added to the most visited child's; more trusts Q
    q_weight_scale: float = 0.1  # Gumbel: logits that the Q range is worth, per visit

    mode: Literal["local", "served"] = "local"  # served: one process searches for all, on the GPU
    served_wait_ms: float = 2.0  # longest that a served search waits for others to join its batch

    max_roots: int = 0  # most environments in one search call; 0 = all
    init_pages: int = 0  # pages of real history; 0 = W per environment, fewer means rebuilds
    init_eviction: Eviction = "lru"  # whose history goes first when there are fewer
    recurrent_pages: int = 0  # pages of tree nodes; 0 = n_simulations per environment
    recurrent_eviction: Eviction = "lru"  # whose tree goes first when there are fewer
    bf16: bool = True  # bfloat16 model and pages on CUDA; the CPU always computes in float32
    debug: bool = False  # fill unused pages with NaN, so that a wrong read shows

    def __post_init__(self) -> None:
        self._check("n_simulations", self.n_simulations, 1, 100_000)
        self._check("leaves_per_call", self.leaves_per_call, 1, self.n_simulations)
        self._check("pb_c_base", self.pb_c_base, 1.0, math.inf)
        self._check("pb_c_init", self.pb_c_init, 0.0, math.inf)
        self._check("dirichlet_alpha", self.dirichlet_alpha, 1e-3, 1e3)
        self._check("dirichlet_fraction", self.dirichlet_fraction, 0.0, 1.0)
        self._check("value_delta_max", self.value_delta_max, 1e-9, math.inf)
        self._check("max_considered_actions", self.max_considered_actions, 1, 100_000)
        for name in ("gumbel_scale", "q_weight_visits", "q_weight_scale"):
            self._check(name, getattr(self, name), 0.0, math.inf)
        if self.variant not in ("puct", "gumbel"):
            raise ValueError(
                f"variant must be 'puct' or 'gumbel', got {self.variant!r}; gumbel learns from "
                "few simulations, puct can keep its trees"
            )
        if self.variant == "gumbel" and self.reuse_tree:
            raise ValueError(
                "reuse_tree must be false with variant 'gumbel', got true; sequential halving "
                "counts every action's visits from none: turn reuse_tree off or take 'puct'"
            )
        if self.mode not in ("local", "served"):
            raise ValueError(
                f"mode must be 'local' or 'served', got {self.mode!r}; local gives every env actor "
                "a world model of its own, served one GPU's to all"
            )
        self._check("served_wait_ms", self.served_wait_ms, 0.0, 10_000.0)
        for name in ("max_roots", "init_pages", "recurrent_pages"):
            self._check(name, getattr(self, name), 0, 10**9)
        for name in ("init_eviction", "recurrent_eviction"):
            if getattr(self, name) not in ("fifo", "lru"):
                raise ValueError(
                    f"{name} must be 'fifo' or 'lru', got {getattr(self, name)!r}; lru keeps the "
                    "pages of environments that act more often than others"
                )

    @staticmethod
    def _check(name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            raise ValueError(
                f"{name} must lie in [{low}, {high}], got {value}; set it within that range"
            )
