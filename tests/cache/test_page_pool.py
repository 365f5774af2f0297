"""Blocks of a pool: never shared between owners, evicted in the promised order."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.pool import EMPTY, PagePool

N_OWNERS = 6
OWNERS = st.lists(st.integers(0, N_OWNERS - 1), min_size=1, max_size=4, unique=True)


class PoolMachine(RuleBasedStateMachine):
    """Random interleavings against a dictionary of owner -> stamp."""

    @initialize(n_blocks=st.integers(1, 5), block_pages=st.integers(1, 4), lru=st.booleans())
    def start(self, n_blocks, block_pages, lru):
        self.pool = PagePool(
            "test",
            first_page=7,
            n_blocks=n_blocks,
            block_pages=block_pages,
            n_owners=N_OWNERS,
            eviction="lru" if lru else "fifo",
        )
        self.stamp = {}  # owner -> when it came (fifo) or was last used (lru)
        self.block = {}
        self.clock = 0
        self.n_evicted = 0

    @rule(owners=OWNERS)
    def acquire(self, owners):
        if len(owners) > self.pool.n_blocks:
            with pytest.raises(RuntimeError, match="blocks of"):
                self.pool.acquire(np.array(owners))
            return
        self.clock += 1
        new = [o for o in owners if o not in self.stamp]
        n_evict = max(0, len(self.stamp) + len(new) - self.pool.n_blocks)
        others = [o for o in self.stamp if o not in owners]
        victims = sorted(others, key=lambda o: (self.stamp[o], self.block[o]))[:n_evict]
        for victim in victims:
            del self.stamp[victim], self.block[victim]
        self.n_evicted += n_evict
        blocks = self.pool.acquire(np.array(owners))
        for owner, block in zip(owners, blocks, strict=True):
            if owner in new or self.pool.eviction == "lru":
                self.stamp[owner] = self.clock
            assert owner in new or self.block[owner] == block
            assert not (self.pool.tags[block] != EMPTY).any() or owner not in new
            self.block[owner] = int(block)
            self.pool.tags[block] = owner  # mark it, to see whether anybody else gets it

    @rule(owners=OWNERS)
    def release(self, owners):
        freed = self.pool.release(np.array(owners))
        held = [o for o in owners if self.block.pop(o, None) is not None]
        assert len(freed) == len(held) * self.pool.block_pages
        for owner in held:
            del self.stamp[owner]

    @precondition(lambda self: self.stamp)
    @rule()
    def clear(self):
        assert len(self.pool.clear()) == len(self.block) * self.pool.block_pages
        self.stamp, self.block = {}, {}

    @invariant()
    def ownership_agrees(self):
        if not hasattr(self, "pool"):
            return
        found = self.pool.blocks(np.arange(N_OWNERS))
        assert {o: int(b) for o, b in enumerate(found) if b != EMPTY} == self.block
        assert len(set(self.block.values())) == len(self.block)
        assert self.pool.evictions == self.n_evicted
        pages = self.pool.page_ids(
            np.array(list(self.block.values()), np.int64)[:, None],
            np.arange(self.pool.block_pages),
        )
        assert len(np.unique(pages)) == pages.size
        assert ((pages >= 7) & (pages < 7 + self.pool.n_pages)).all()
        for owner in range(N_OWNERS):
            page = self.pool.find(np.array([owner]), np.array([0]), np.array([owner]))[0]
            assert (page != EMPTY) == (owner in self.block)
        assert self.pool.stats(10).pages_used == pages.size


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestPool = PoolMachine.TestCase


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes_must_be_positive(sizes):
    n_blocks, block_pages, n_owners = sizes
    with pytest.raises(ValueError, match="'ring' needs positive sizes"):
        PagePool(
            "ring", first_page=1, n_blocks=n_blocks, block_pages=block_pages, n_owners=n_owners
        )


def test_unknown_eviction_is_refused():
    with pytest.raises(ValueError, match="'fifo' or 'lru', got 'random'"):
        PagePool("x", first_page=1, n_blocks=1, block_pages=1, n_owners=1, eviction="random")
