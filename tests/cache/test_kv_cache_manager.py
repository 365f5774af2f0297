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


class Holders:
    """Who holds a block of one pool, by the words of the specification: a dictionary and a clock.

    Blocks acquired by one call are equally old; the one with the lower number goes first.
    """

    def __init__(self, n_blocks, eviction):
        self.n_blocks, self.eviction = n_blocks, eviction
        self.held = {}  # env -> [block, acquired or last used]
        self.clock = self.evictions = 0

    def acquire(self, envs):
        """Environments that lose their block."""
        self.clock += 1
        lost = []
        for env in (env for env in envs if env not in self.held):
            free = sorted(set(range(self.n_blocks)) - {block for block, _ in self.held.values()})
            if not free:
                others = [(age, block, e) for e, (block, age) in self.held.items() if e not in envs]
                _, block, victim = min(others)
                del self.held[victim]
                lost.append(victim)
                free = [block]
            self.held[env] = [free[0], self.clock]
        if self.eviction == "lru":
            for env in envs:
                self.held[env][1] = self.clock
        self.evictions += len(lost)
        return lost

    def release(self, envs):
        for env in envs:
            self.held.pop(env, None)


class ManagerMachine(RuleBasedStateMachine):
    """Every write carries a serial number; a look-up must give back the right one or a miss."""

    @initialize(
        window=st.integers(1, 4),
        n_blocks=st.integers(3, 5),
        init=st.sampled_from(["fifo", "lru"]),
        recurrent=st.sampled_from(["fifo", "lru"]),
    )
    def start(self, window, n_blocks, init, recurrent):
        self.cache = make_manager(
            window_steps=window,
            n_init=n_blocks,
            n_recurrent=n_blocks,
            init_eviction=init,
            recurrent_eviction=recurrent,
        )
        self.rings, self.trees = Holders(n_blocks, init), Holders(n_blocks, recurrent)
        self.step = np.zeros(N_ENVS, np.int64)
        self.real = {}  # (env, step) -> serial
        self.nodes = {}  # (env, root step, node) -> serial
        self.serial = 0
        self.hits, self.misses = {"init": 0, "recurrent": 0}, {"init": 0, "recurrent": 0}

    def write(self, pages):
        content = torch.zeros(len(pages), *SHAPE.dims)
        serials = list(range(self.serial, self.serial + len(pages)))
        self.serial += len(pages)
        content += torch.tensor(serials)[:, None, None, None, None, None]
        ids = torch.from_numpy(pages)
        self.cache.pages.kv[ids] = content
        self.cache.pages.mark(ids, True)
        return serials

    def forget_rings(self, envs):
        self.real = {k: v for k, v in self.real.items() if k[0] not in envs}

    def forget_trees(self, envs):
        self.nodes = {k: v for k, v in self.nodes.items() if k[0] not in envs}

    @rule(envs=ENVS)
    def append_real_step(self, envs):
        self.forget_rings(self.rings.acquire(envs.tolist()))
        self.cache.hold_rings(envs)
        steps = self.step[envs]
        serials = self.write(self.cache.ring_pages(envs, steps))
        self.cache.publish(envs, steps)
        self.step[envs] += 1
        self.real.update(zip(zip(envs.tolist(), steps.tolist(), strict=True), serials, strict=True))

    @rule(envs=ENVS)
    def plant(self, envs):
        roots = self.step[envs] - 1
        lost = self.trees.acquire(envs.tolist())
        self.forget_trees([*lost, *envs.tolist()])
        first = self.cache.plant_trees(envs, roots)
        for node in range(1, 5):
            serials = self.write(first + node - 1)
            for env, root, serial in zip(envs.tolist(), roots.tolist(), serials, strict=True):
                self.nodes[env, root, node] = serial

    @rule(scope=st.sampled_from(["all", "recurrent"]))
    def clear(self, scope):
        self.cache.clear(scope)
        self.trees.release(range(N_ENVS))
        self.nodes = {}
        if scope == "all":
            self.rings.release(range(N_ENVS))
            self.real = {}

    @rule(envs=ENVS)
    def reset_envs(self, envs):
        self.cache.clear("env", envs.tolist())
        self.step[envs] = 0
        self.rings.release(envs.tolist())
        self.trees.release(envs.tolist())
        self.forget_rings(envs)
        self.forget_trees(envs)

    @rule(version=st.integers(0, 2))
    def change_version(self, version):
        if version != self.cache.version:
            self.rings.release(range(N_ENVS))
            self.trees.release(range(N_ENVS))
            self.real, self.nodes = {}, {}
        self.cache.invalidate(version)

    @rule()
    def borrow_scratch(self):
        blocks = self.cache.scratch.acquire(np.arange(2))
        self.write(self.cache.scratch.page_ids(blocks, np.zeros(2, np.int64)))
        self.cache.clear("scratch")

    def content(self, page):
        kv = self.cache.pages.kv[page]
        assert not self.cache.pages.mask[page].any()
        assert (kv == kv.flatten()[0]).all()
        return int(kv.flatten()[0])

    def look_up(self, pool, env, step, node, expected):
        """Check one look-up against `expected`, a serial number or None; returns the page."""
        page = self.cache.lookup(np.array([env]), np.array([step]), np.array([node]))[0]
        (self.misses if expected is None else self.hits)[pool] += 1
        assert (page != EMPTY) == (expected is not None)
        if expected is not None:
            assert self.content(page) == expected
        return page

    @invariant()
    def holders_are_those_the_rules_name_and_share_no_page(self):
        if not hasattr(self, "cache"):
            return
        pages = []
        for pool, holders in ((self.cache.init, self.rings), (self.cache.recurrent, self.trees)):
            blocks = pool.blocks(np.arange(N_ENVS))
            assert {e: int(b) for e, b in enumerate(blocks) if b != EMPTY} == {
                env: block for env, (block, _) in holders.held.items()
            }
            assert pool.evictions == holders.evictions
            held = blocks[blocks != EMPTY]
            pages += pool.page_ids(held[:, None], np.arange(pool.block_pages)).ravel().tolist()
        assert len(pages) == len(set(pages)) and not set(pages) & set(range(N_RESERVED_PAGES))

    @invariant()
    def lookups_find_what_was_written(self):
        if not hasattr(self, "cache"):
            return
        for env in range(N_ENVS):
            newest = int(self.step[env]) - 1
            for step in range(max(0, newest - self.cache.window_steps + 1), newest + 1):
                self.look_up("init", env, step, EMPTY, self.real.get((env, step)))
            for node in range(1, 5) if newest >= 0 else ():
                self.look_up(
                    "recurrent", env, newest + 1, node, self.nodes.get((env, newest, node))
                )
        for name, stats in self.cache.stats().items():
            if name != "scratch":
                assert (stats.hits, stats.misses) == (self.hits[name], self.misses[name])
        null = self.cache.pages.kv[NULL_PAGE], self.cache.pages.mask[NULL_PAGE]
        assert not null[0].any() and torch.isneginf(null[1]).all()


ManagerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
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
