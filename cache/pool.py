"""A pool of pages: a contiguous range of page ids, cut into equal blocks that owners hold.

An owner (an environment) holds at most one block of a pool. Each page of a held block carries a
tag (the step it belongs to), so a page is found by (owner, offset, tag) without any hashing.
Bookkeeping only, on numpy arrays; every call is vectorised over owners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Eviction = Literal["fifo", "lru"]
EMPTY = -1


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counters since the last reset, and the pool's present use."""

    hits: int  # pages looked for in this pool and found
    misses: int  # pages looked for and not found
    evictions: int  # blocks taken from one owner for another
    pages_used: int  # pages that carry a tag
    pages_total: int
    bytes_used: int
    bytes_total: int

    @property
    def hit_rate(self) -> float:
        """Share of look-ups that were found; 1.0 before the first one."""
        n_lookups = self.hits + self.misses
        return self.hits / n_lookups if n_lookups else 1.0


class PagePool:
    """Blocks of pages held by owners 0 .. n_owners - 1; not thread-safe, one per search."""

    def __init__(
        self,
        name: str,
        *,
        first_page: int,
        n_blocks: int,
        block_pages: int,
        n_owners: int,
        eviction: Eviction = "fifo",
    ) -> None:
        if min(n_blocks, block_pages, n_owners) < 1:
            raise ValueError(
                f"pool {name!r} needs positive sizes, got n_blocks={n_blocks}, "
                f"block_pages={block_pages}, n_owners={n_owners}"
            )
        if eviction not in ("fifo", "lru"):
            raise ValueError(f"eviction of pool {name!r} must be 'fifo' or 'lru', got {eviction!r}")
        self.name = name
        self.n_blocks = n_blocks
        self.block_pages = block_pages
        self.eviction = eviction
        self.first_page = first_page
        self.tags: Ints = np.full((n_blocks, block_pages), EMPTY, np.int64)
        self.hits = self.misses = self.evictions = 0
        self._block_of: Ints = np.full(n_owners, EMPTY, np.int64)
        self._owner_of: Ints = np.full(n_blocks, EMPTY, np.int64)
        self._stamp: Ints = np.zeros(n_blocks, np.int64)
        self._clock = 0

    @property
    def n_pages(self) -> int:
        return self.n_blocks * self.block_pages

    def blocks(self, owners: Ints) -> Ints:
        """Block of each owner, EMPTY where it holds none."""
        return self._block_of[owners]

    def page_ids(self, blocks: Ints, offsets: Ints) -> Ints:
        """Ids of the pages at `offsets` of `blocks` (broadcast together)."""
        return self.first_page + blocks * self.block_pages + offsets

    def acquire(self, owners: Ints) -> Ints:
        """Block of each of the distinct `owners`, taken from free blocks, then by eviction."""
        self._clock += 1
        if len(owners) > self.n_blocks:
            raise RuntimeError(
                f"pool {self.name!r} has {self.n_blocks} blocks of {self.block_pages} pages, "
                f"{len(owners)} owners want one at once; enlarge the pool or search fewer roots"
            )
        held = self._block_of[owners]
        newcomers = owners[held == EMPTY]
        if len(newcomers):
            taken = self._take(len(newcomers), protected=held[held != EMPTY])
            self._block_of[newcomers] = taken
            self._owner_of[taken] = newcomers
            self._stamp[taken] = self._clock
            held = self._block_of[owners]
        if self.eviction == "lru":
            self._stamp[held] = self._clock
        return held

    def find(self, owners: Ints, offsets: Ints, tags: Ints) -> Ints:
        """Page ids of the pages so tagged, EMPTY where absent. Arguments broadcast together."""
        blocks = self._block_of[owners]
        known = (blocks != EMPTY) & (offsets >= 0) & (offsets < self.block_pages)
        found = known & (self.tags[blocks, np.where(known, offsets, 0)] == tags)
        return np.where(found, self.page_ids(blocks, offsets), EMPTY)

    def release(self, owners: Ints) -> Ints:
        """Free the blocks of `owners`; returns the page ids they held."""
        blocks = self._block_of[owners]
        blocks = blocks[blocks != EMPTY]
        self._block_of[owners] = EMPTY
        return self._free(blocks)

    def clear(self) -> Ints:
        """Free every block; returns the page ids that were held."""
        self._block_of[:] = EMPTY
        return self._free(np.flatnonzero(self._owner_of != EMPTY))

    def stats(self, page_bytes: int) -> PoolStats:
        used = int(np.count_nonzero(self.tags != EMPTY))
        return PoolStats(
            hits=self.hits,
            misses=self.misses,
            evictions=self.evictions,
            pages_used=used,
            pages_total=self.n_pages,
            bytes_used=used * page_bytes,
            bytes_total=self.n_pages * page_bytes,
        )

    def _take(self, n_wanted: int, protected: Ints) -> Ints:
        free = np.flatnonzero(self._owner_of == EMPTY)[:n_wanted]
        n_evict = n_wanted - len(free)
        if n_evict == 0:
            return free
        candidate = self._owner_of != EMPTY
        candidate[protected] = False
        oldest = np.flatnonzero(candidate)
        # stable: blocks of one stamp go in block order, so a run repeats exactly
        victims = oldest[np.argsort(self._stamp[oldest], kind="stable")[:n_evict]]
        self._block_of[self._owner_of[victims]] = EMPTY
        self.tags[victims] = EMPTY
        self.evictions += n_evict
        return np.concatenate((free, victims))

    def _free(self, blocks: Ints) -> Ints:
        self._owner_of[blocks] = EMPTY
        self.tags[blocks] = EMPTY
        return self.page_ids(blocks[:, None], np.arange(self.block_pages)).ravel()
