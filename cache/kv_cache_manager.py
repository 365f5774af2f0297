"""Who owns which page: three pools over one page tensor, and the only way to clear them.

init       real history, a ring of W pages per environment; step t lives at offset t % W
recurrent  the nodes of each environment's latest search tree, in an order of the search's own
scratch    working pages of the world model while it rebuilds a lost window, W per row

A look-up goes init -> recurrent -> miss. The caller rebuilds what was missed from raw tokens, so
eviction and invalidation cost time, never exactness.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cache.pages import N_RESERVED_PAGES, NULL_PAGE, Pages, PageShape
from cache.pool import EMPTY, Eviction, Ints, PagePool, PoolStats

Scope = Literal["all", "recurrent", "scratch", "env"]


class KVCacheManager:
    """Pages of one planner; used by its thread only.

    n_envs:        environments, numbered 0 .. n_envs - 1
    window_steps:  W, steps that a query sees, its own included
    tree_pages:    nodes of one search tree beside the root, i.e. the number of simulations
    n_init, n_recurrent, n_scratch: blocks of each pool (rings, trees, rows rebuilt at once)
    """

    def __init__(
        self,
        shape: PageShape,
        *,
        n_envs: int,
        window_steps: int,
        tree_pages: int,
        n_init: int,
        n_recurrent: int,
        n_scratch: int,
        init_eviction: Eviction = "fifo",
        recurrent_eviction: Eviction = "fifo",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        debug: bool = False,
    ) -> None:
        if window_steps < 1:
            raise ValueError(f"window_steps must be at least 1, got {window_steps}")
        self.window_steps = window_steps
        self.version = -1
        first = N_RESERVED_PAGES
        sizes: tuple[tuple[str, int, int, int, Eviction], ...] = (
            ("init", n_init, window_steps, n_envs, init_eviction),
            ("recurrent", n_recurrent, tree_pages, n_envs, recurrent_eviction),
            # As many blocks as owners: nobody is ever evicted.
            ("scratch", n_scratch, window_steps, n_scratch, "fifo"),
        )
        pools = []
        for name, n_blocks, block_pages, n_owners, eviction in sizes:
            pool = PagePool(
                name,
                first_page=first,
                n_blocks=n_blocks,
                block_pages=block_pages,
                n_owners=n_owners,
                eviction=eviction,
            )
            pools.append(pool)
            first += pool.n_pages
        self.init, self.recurrent, self.scratch = pools
        self.pages = Pages(first, shape, device, dtype, debug)
        self._debug = debug

    def lookup(self, envs: Ints, steps: Ints, nodes: Ints) -> Ints:
        """Page ids of real steps, searched init -> recurrent; EMPTY on a miss.

        Arguments broadcast together. `nodes` is -1 for a step that only real history can hold.
        Where it is n > 0, the n-th page of the tree searched at step - 1 (of the node that the
        action then played led to),
        the init pool cannot hold the step yet and is charged no miss; such a page is exact in its
        action slot only. Steps before the episode (negative) give the null page, uncounted.
        """
        envs, steps, nodes = np.broadcast_arrays(envs, steps, nodes)
        real = steps >= 0
        found = self.init.find(envs, np.where(real, steps % self.window_steps, EMPTY), steps)
        in_init = real & (found != EMPTY)
        has_node = real & ~in_init & (nodes > 0)
        in_tree = self.recurrent.find(envs, np.where(has_node, nodes - 1, EMPTY), steps - 1)
        n_tree_hits = int(np.count_nonzero(has_node & (in_tree != EMPTY)))
        n_has_node = int(np.count_nonzero(has_node))
        n_init_hits = int(np.count_nonzero(in_init))
        self.init.hits += n_init_hits
        self.init.misses += int(np.count_nonzero(real)) - n_init_hits - n_has_node
        self.recurrent.hits += n_tree_hits
        self.recurrent.misses += n_has_node - n_tree_hits
        found = np.where(has_node, in_tree, found)
        return np.where(real, found, NULL_PAGE)

    def hold_rings(self, envs: Ints) -> None:
        """Give every one of the distinct `envs` a ring, evicting other environments' if needed."""
        self.init.acquire(envs)

    def ring_pages(self, envs: Ints, steps: Ints) -> Ints:
        """Page ids where `envs` (holding rings) keep `steps`; null page for negative steps."""
        ids = self.init.page_ids(self.init.blocks(envs), steps % self.window_steps)
        return np.where(steps >= 0, ids, NULL_PAGE)

    def publish(self, envs: Ints, steps: Ints) -> None:
        """Declare that the ring pages of `steps` are written; negative steps are skipped."""
        envs, steps = (x.ravel() for x in np.broadcast_arrays(envs, steps))
        real = steps >= 0
        envs, steps = envs[real], steps[real]
        self.init.tags[self.init.blocks(envs), steps % self.window_steps] = steps

    def has_trees(self, envs: Ints, steps: Ints) -> NDArray[np.bool_]:
        """Whether each environment still holds the tree rooted at `steps`; counts no look-up."""
        found = self.recurrent.find(envs, np.zeros_like(envs), steps)
        return np.not_equal(found, EMPTY)

    def plant_trees(self, envs: Ints, steps: Ints) -> Ints:
        """Reserve a tree per environment, rooted at `steps`; page id of each tree's node 1.

        The n-th page of a tree is `first + n - 1`. An environment that had a tree keeps its pages
        as they are, and may go on reading them.
        """
        blocks = self.recurrent.acquire(envs)
        self.recurrent.tags[blocks] = steps[:, None]
        first = self.recurrent.page_ids(blocks, np.zeros_like(blocks))
        every = (first[:, None] + np.arange(self.recurrent.block_pages)).ravel()
        # A node always has both tokens, and is only ever read after it was written.
        self.pages.mark(torch.from_numpy(every).to(self.pages.kv.device), True)
        return first

    def tree_pages(self, envs: Ints) -> Ints:
        """First page of each environment's tree; every one of `envs` holds one."""
        blocks = self.recurrent.blocks(envs)
        return self.recurrent.page_ids(blocks, np.zeros_like(blocks))

    def clear(self, scope: Scope = "all", env_ids: Iterable[int] | None = None) -> None:
        """Forget pages: of every pool, of one, or the rings and trees of some environments."""
        if (scope == "env") != (env_ids is not None):
            raise ValueError(f"env_ids go with scope 'env' and only there, got scope {scope!r}")
        if scope == "all":
            freed = [pool.clear() for pool in (self.init, self.recurrent, self.scratch)]
        elif scope in ("recurrent", "scratch"):
            freed = [(self.recurrent if scope == "recurrent" else self.scratch).clear()]
        elif scope == "env":
            envs = np.asarray(env_ids, np.int64)
            freed = [self.init.release(envs), self.recurrent.release(envs)]
        else:
            allowed = "'all', 'recurrent', 'scratch' or 'env'"
            raise ValueError(f"scope must be {allowed}, got {scope!r}")
        self.pages.wipe(torch.from_numpy(np.concatenate(freed)).to(self.pages.kv.device))

    def invalidate(self, version: int) -> None:
        """Forget everything unless the pages already belong to weight `version`."""
        if version != self.version:
            self.clear("all")
            self.version = version

    def stats(self, reset: bool = False) -> dict[str, PoolStats]:
        """Statistics by pool name; `reset` starts a new interval of the counters."""
        pools = (self.init, self.recurrent, self.scratch)
        result = {pool.name: pool.stats(self.pages.page_bytes) for pool in pools}
        if reset:
            for pool in pools:
                pool.hits = pool.misses = pool.evictions = 0
        return result
