"""The manager against a dictionary: what is found is what was written, and nobody else's."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache.kv_cache_manager import KVCacheManager
from cache.pages import N_RESERVED_PAGES, NULL_PAGE, PageShape
from cache.pool import EMPTY

SHAPE = PageShape(n_layers=2, n_heads=1, head_dim=2)
N_ENVS = 5
ENVS = st.lists(st.integers(0, N_ENVS - 1), min_size=1, max_size=3, unique=True).map(np.array)


def make_manager(**changes):
    sizes = dict(n_envs=N_ENVS, window_steps=3, tree_pages=4, n_init=3, n_recurrent=3, n_scratch=2)
    return KVCacheManager(SHAPE, **{**sizes, **changes}, debug=True)


class ManagerMachine(RuleBasedStateMachine):
    """Every write carries a serial number; a look-up must give back the right one or a miss."""

    @initialize(window=st.integers(1, 4), lru=st.booleans())
    def start(self, window, lru):
        eviction = "lru" if lru else "fifo"
        self.cache = make_manager(window_steps=window, eviction=eviction)
        self.step = np.zeros(N_ENVS, np.int64)
        self.real = {}  # (env, step) -> serial
        self.nodes = {}  # (env, root step, node) -> serial
        self.serial = 0

    def write(self, pages):
        content = torch.zeros(len(pages), 2, 2, 1, 2)
        serials = list(range(self.serial, self.serial + len(pages)))
        self.serial += len(pages)
        content += torch.tensor(serials)[:, None, None, None, None]
        ids = torch.from_numpy(pages)
        self.cache.pages.write(ids, content, content)
        self.cache.pages.mark(ids, True)
        return serials

    @rule(envs=ENVS)
    def append_real_step(self, envs):
        self.cache.hold_rings(envs)
        steps = self.step[envs]
        serials = self.write(self.cache.ring_pages(envs, steps))
        self.cache.publish(envs, steps)
        self.step[envs] += 1
        self.real.update(zip(zip(envs.tolist(), steps.tolist(), strict=True), serials, strict=True))

    @rule(envs=ENVS)
    def plant(self, envs):
        roots = self.step[envs] - 1
        first = self.cache.plant_trees(envs, roots)
        for key in [key for key in self.nodes if key[0] in envs]:
            del self.nodes[key]
        for node in range(1, 5):
            serials = self.write(first + node - 1)
            for env, root, serial in zip(envs.tolist(), roots.tolist(), serials, strict=True):
                self.nodes[env, root, node] = serial

    @rule(scope=st.sampled_from(["all", "recurrent"]))
    def clear(self, scope):
        self.cache.clear(scope)
        self.nodes = {}
        if scope == "all":
            self.real = {}

    @rule(envs=ENVS)
    def reset_envs(self, envs):
        self.cache.clear("env", envs.tolist())
        self.step[envs] = 0
        self.real = {k: v for k, v in self.real.items() if k[0] not in envs}
        self.nodes = {k: v for k, v in self.nodes.items() if k[0] not in envs}

    @rule(version=st.integers(0, 2))
    def change_version(self, version):
        if version != self.cache.version:
            self.real, self.nodes = {}, {}
        self.cache.invalidate(version)

    @rule()
    def borrow_scratch(self):
        blocks = self.cache.scratch.acquire(np.arange(2))
        self.write(self.cache.scratch.page_ids(blocks, np.zeros(2, np.int64)))
        self.cache.pages.wipe(torch.from_numpy(self.cache.scratch.clear()))

    def content(self, page):
        kv = self.cache.pages.kv[page]
        assert self.cache.pages.valid[page].all()
        assert (kv == kv.flatten()[0]).all()
        return int(kv.flatten()[0])

    @invariant()
    def lookups_find_what_was_written(self):
        if not hasattr(self, "cache"):
            return
        cache, seen = self.cache, {}
        for env in range(N_ENVS):
            newest = int(self.step[env]) - 1
            has_ring = cache.init.blocks(np.array([env]))[0] != EMPTY
            if not has_ring:  # evicted: the dictionary forgets too
                self.real = {k: v for k, v in self.real.items() if k[0] != env}
            for step in range(max(0, newest - cache.window_steps + 1), newest + 1):
                page = cache.lookup(np.array([env]), np.array([step]), np.array([EMPTY]))[0]
                assert (page != EMPTY) == ((env, step) in self.real)
                if page != EMPTY:
                    assert self.content(page) == self.real[env, step]
                    assert seen.setdefault(int(page), ("real", env, step)) == ("real", env, step)
            has_tree = cache.recurrent.blocks(np.array([env]))[0] != EMPTY
            if not has_tree:
                self.nodes = {k: v for k, v in self.nodes.items() if k[0] != env}
            for node in range(1, 5) if newest >= 0 else ():
                page = cache.lookup(np.array([env]), np.array([newest + 1]), np.array([node]))[0]
                assert (page != EMPTY) == ((env, newest, node) in self.nodes)
                if page != EMPTY:
                    assert self.content(page) == self.nodes[env, newest, node]
                    assert seen.setdefault(int(page), ("node", env, node)) == ("node", env, node)
        assert NULL_PAGE not in seen
        assert not cache.pages.kv[NULL_PAGE].any() and not cache.pages.valid[NULL_PAGE].any()


ManagerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestManager = ManagerMachine.TestCase


def test_statistics_count_each_level():
    cache = make_manager()
    envs, nothing = np.array([0, 1]), np.array([EMPTY, EMPTY])
    cache.hold_rings(envs)
    cache.publish(envs, np.array([0, 0]))
    cache.plant_trees(envs, np.array([0, 0]))
    cache.lookup(envs, np.array([0, 0]), nothing)  # two hits
    cache.lookup(envs, np.array([1, -1]), nothing)  # a miss; before the start counts as nothing
    cache.lookup(envs, np.array([1, 1]), np.array([2, 3]))  # found in the trees
    cache.lookup(envs, np.array([2, 2]), np.array([2, 2]))  # trees of another root step
    stats = cache.stats(reset=True)
    assert (stats["init"].hits, stats["init"].misses) == (2, 1)
    assert (stats["recurrent"].hits, stats["recurrent"].misses) == (2, 2)
    assert stats["init"].hit_rate == pytest.approx(2 / 3)
    assert stats["init"].pages_used == 2 and stats["recurrent"].pages_used == 8
    assert stats["init"].bytes_used == 2 * (2 * 2 * 2 * 1 * 2) * 4
    assert stats["scratch"].pages_total == 2 * 3 and stats["scratch"].hit_rate == 1.0
    after = cache.stats()["init"]
    assert (after.hits, after.misses, after.evictions, after.pages_used) == (0, 0, 0, 2)


def test_pools_cover_the_tensor_without_overlap():
    cache = make_manager()
    pools = (cache.init, cache.recurrent, cache.scratch)
    first = N_RESERVED_PAGES
    for pool in pools:
        assert pool.first_page == first
        first += pool.n_pages
    assert len(cache.pages) == first
    assert cache.pages.size_bytes == first * cache.pages.page_bytes


@pytest.mark.parametrize(("scope", "env_ids"), [("env", None), ("all", [1]), ("wm", None)])
def test_clear_refuses_what_it_does_not_know(scope, env_ids):
    with pytest.raises(ValueError, match="scope"):
        make_manager().clear(scope, env_ids)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="window_steps must be at least 1, got 0"):
        make_manager(window_steps=0)
    with pytest.raises(ValueError, match="page sizes must be positive"):
        PageShape(0, 1, 1)
