"""When a batch goes, and with whom."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.batching import BatchQueue


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_batch_goes_when_its_oldest_item_has_waited(clock):
    queue = BatchQueue(max_roots=8, wait_s=0.002, clock=clock)
    assert queue.reason is None
    queue.put("a", client=0, n_roots=2)
    clock.now = 0.001
    queue.put("b", client=1, n_roots=2)
    assert queue.reason is None
    clock.now = 0.002
    assert queue.reason == "overdue"
    assert queue.take() == ["a", "b"] and queue.reason is None
    stats = queue.stats()
    assert (stats.n_taken, stats.overdue) == (2, 1)
    assert stats.wait_s == pytest.approx(0.003)
    assert queue.stats().n_taken == 0


def test_a_batch_goes_when_it_is_full_and_leaves_the_rest(clock):
    queue = BatchQueue(max_roots=5, wait_s=1.0, clock=clock)
    for index, name in enumerate("abc"):
        queue.put(name, client=index, n_roots=2)
    assert queue.reason == "full"
    assert queue.take() == ["a", "b"]  # 6 roots would be too many
    assert queue.reason is None
    queue.put("huge", client=9, n_roots=50)
    assert queue.take() == ["c"] and queue.take() == ["huge"]


def test_a_batch_goes_when_everybody_is_back(clock):
    queue = BatchQueue(max_roots=100, wait_s=1.0, clock=clock)
    queue.put("a", client=0, n_roots=1)
    queue.put("b", client=1, n_roots=1)
    clock.now = 1.0
    queue.take()
    queue.put("a", client=0, n_roots=1)
    assert queue.reason is None
    queue.put("b", client=1, n_roots=1)
    assert queue.reason == "complete" and queue.take() == ["a", "b"]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.floats(0, 2)), max_size=30),
    st.integers(1, 8),
)
def test_nothing_is_lost_overtaken_or_kept_past_its_time(puts, max_roots):
    clock, wait_s, taken = Clock(), 1.0, []
    queue = BatchQueue(max_roots, wait_s, clock)
    since = {}
    for item, (client, n_roots, pause) in enumerate(puts):
        queue.put((item, n_roots), client, n_roots)
        since[item] = clock.now
        clock.now += pause
        while queue.reason is not None:
            batch = queue.take()
            assert len(batch) == 1 or sum(n for _, n in batch) <= max_roots
            taken += [item for item, _ in batch]
        left = [s for item, s in since.items() if item not in taken]
        assert all(clock.now - s < wait_s for s in left)
    assert taken == list(range(len(taken)))


def test_a_worker_wakes_for_a_late_item():
    queue, taken = BatchQueue(max_roots=4, wait_s=0.01), []
    worker = threading.Thread(target=lambda: taken.extend(queue.take()))
    worker.start()
    queue.put("a", client=0, n_roots=1)
    worker.join(timeout=10)
    assert taken == ["a"] and not worker.is_alive()
