"""Where segments go: bytes stay balanced, through evictions, unequal rings and losses."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.control.shards import PAYLOADS_AHEAD, ShardBook
from replay_service import AddReport


class Rings:
    """Shards that hold up to `capacity` bytes of payloads, oldest out first."""

    def __init__(self, capacities: list[int]) -> None:
        self.capacities = capacities
        self.payloads: list[list[int]] = [[] for _ in capacities]

    def held(self, shard: int) -> int:
        return sum(self.payloads[shard])

    def add(self, shard: int, n_bytes: int) -> AddReport:
        self.payloads[shard].append(n_bytes)
        while self.held(shard) > self.capacities[shard]:
            self.payloads[shard].pop(0)
        return AddReport(1, 0, 0, 0, n_bytes=n_bytes, n_bytes_held=self.held(shard))


NOBODY = (f"source-{i}" for i in itertools.count())  # each sends one payload, and has no home


def push(book: ShardBook, rings: Rings, n_bytes: int, source: str = "") -> int:
    shard = book.choose(source or next(NOBODY), n_bytes)
    book.sent(shard, n_bytes)
    book.stored(shard, n_bytes, rings.add(shard, n_bytes))
    return shard


sizes = st.lists(st.integers(1, 100), min_size=1, max_size=120)


@settings(max_examples=100)
@given(n_shards=st.integers(1, 6), sizes=sizes, n_slow=st.integers(0, 8))
def test_bytes_are_balanced_to_within_one_payload(n_shards, sizes, n_slow):
    """Up to `n_slow` payloads are in flight at a time; shards are far from full."""
    book, rings = ShardBook(n_shards), Rings([10**9] * n_shards)
    flying: list[tuple[int, int]] = []
    for n_bytes in sizes:
        shard = book.choose(next(NOBODY), n_bytes)
        book.sent(shard, n_bytes)
        flying.append((shard, n_bytes))
        while len(flying) > n_slow:
            shard, n_bytes = flying.pop(0)
            book.stored(shard, n_bytes, rings.add(shard, n_bytes))
    for shard, n_bytes in flying:
        book.stored(shard, n_bytes, rings.add(shard, n_bytes))
    held = [rings.held(shard) for shard in range(n_shards)]
    assert max(held) - min(held) <= max(sizes)
    assert all(account.in_flight == 0 for account in book.accounts)


@settings(max_examples=100)
@given(
    n_shards=st.integers(1, 4),
    pushes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 100)), min_size=1, max_size=200),
)
def test_shards_of_steady_sources_stay_balanced(n_shards, pushes):
    book, rings = ShardBook(n_shards), Rings([10**9] * n_shards)
    for source, n_bytes in pushes:
        push(book, rings, n_bytes, f"env-actor-{source}")
    held = [rings.held(shard) for shard in range(n_shards)]
    assert max(held) - min(held) <= (PAYLOADS_AHEAD + 1) * 100


@pytest.mark.parametrize("n_sources", [2, 3, 7, 32])
def test_a_source_keeps_its_shard_most_of_the_time(n_sources):
    book, rings = ShardBook(2), Rings([1_000] * 2)
    homes: dict[int, int] = {}
    n_moves = 0
    for turn in range(3_000):
        source = turn % n_sources
        shard = push(book, rings, 10, f"env-actor-{source}")
        n_moves += homes.get(source, shard) != shard
        homes[source] = shard
    assert n_moves < 3_000 / 10
    assert set(homes.values()) == {0, 1}


def test_a_source_whose_shard_was_lost_gets_another():
    book, rings = ShardBook(2), Rings([1_000] * 2)
    home = push(book, rings, 10, "env-actor-0")
    assert push(book, rings, 10, "env-actor-0") == home
    book.lose(home)
    assert push(book, rings, 10, "env-actor-0") != home


def test_ties_go_to_the_first():
    book, rings = ShardBook(3), Rings([100] * 3)
    assert [push(book, rings, 5) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_ring_that_holds_less_than_others_does_not_get_everything():
    """By bytes held alone, the second ring would be the emptiest one for ever."""
    book, rings = ShardBook(2), Rings([100, 97])
    chosen = [push(book, rings, 10) for _ in range(200)]
    assert abs(chosen.count(0) - chosen.count(1)) <= 1


@settings(max_examples=100)
@given(
    before=st.lists(st.integers(1, 20), min_size=6, max_size=80),
    after=st.lists(st.integers(1, 20), min_size=1, max_size=80),
    lost=st.integers(0, 2),
)
def test_a_shard_that_came_back_catches_up_and_no_more(before, after, lost):
    book, rings = ShardBook(3), Rings([200] * 3)
    for n_bytes in before:
        push(book, rings, n_bytes)
    book.lose(lost)
    rings.payloads[lost] = []
    assert push(book, rings, 1) != lost
    book.welcome(lost)
    lowest = min(rings.held(shard) for shard in range(3) if shard != lost)
    chosen = []
    for n_bytes in after:
        is_behind = rings.held(lost) + 20 < lowest
        chosen.append(push(book, rings, n_bytes))
        assert not is_behind or chosen[-1] == lost
    others = [book.accounts[shard].pushed for shard in range(3) if shard != lost]
    assert book.accounts[lost].pushed <= max(others) + 20


def test_what_was_not_stored_does_not_count():
    book = ShardBook(2)
    book.sent(0, 50)
    book.stored(0, 50, AddReport(0, 0, 1, 0, ("malformed",)))
    assert book.choose("an actor", 50) == 0


def test_a_shard_may_be_lost_while_another_holds_something():
    book, rings = ShardBook(2), Rings([100, 100])
    assert not book.others_hold(0)
    push(book, rings, 5)
    assert book.others_hold(1) and not book.others_hold(0)
    push(book, rings, 5)
    assert book.others_hold(0)
    book.lose(1)
    assert not book.others_hold(0) and book.n_serving == 1
    book.welcome(1)
    assert not book.others_hold(0) and book.n_serving == 2
