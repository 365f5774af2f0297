"""The prior cache against a list that is searched from its end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.prior_cache import PriorCache

OPTIONS = ("left", "right")
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 5), st.integers(0, 2)), max_size=80
)


@given(capacity=st.integers(0, 5), operations=OPERATIONS)
def test_keeps_the_most_recently_used(
    capacity: int, operations: list[tuple[str, int, int]]
) -> None:
    cache = PriorCache(capacity)
    recent: list[tuple[tuple[int, int], float]] = []  # least recently used first
    hits = misses = evictions = 0
    for step, (verb, prompt, version) in enumerate(operations):
        key = (prompt, version)
        held = next((entry for entry in recent if entry[0] == key), None)
        if verb == "put":
            cache.put(str(prompt), OPTIONS, version, np.full(2, step, np.float32))
            recent = [entry for entry in recent if entry[0] != key] + [(key, float(step))]
            if len(recent) > capacity:
                evictions += capacity > 0
                recent.pop(0)
            continue
        found = cache.get(str(prompt), OPTIONS, version)
        assert (found is None) == (held is None)
        if held is None:
            misses += 1
        else:
            hits += 1
            assert found is not None and found.tolist() == [held[1]] * 2
            recent.remove(held)
            recent.append(held)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.evictions) == (hits, misses, evictions)
    assert stats.size == len(cache) == len(recent)


def test_an_answer_belongs_to_its_options_and_version() -> None:
    cache = PriorCache(10)
    cache.put("state", OPTIONS, 1, np.zeros(2, np.float32))
    assert cache.get("state", OPTIONS, 2) is None
    assert cache.get("state", ("right", "left"), 1) is None
    assert cache.get("state", OPTIONS, 1) is not None


def test_answers_are_copies_nobody_can_change() -> None:
    cache = PriorCache(1)
    mine = np.zeros(2, np.float32)
    cache.put("state", OPTIONS, 0, mine)
    mine[0] = 7.0
    held = cache.get("state", OPTIONS, 0)
    assert held is not None and held[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 1.0


def test_clear_forgets_but_counts_on() -> None:
    cache = PriorCache(2)
    cache.put("state", OPTIONS, 0, np.zeros(2, np.float32))
    cache.clear()
    assert cache.get("state", OPTIONS, 0) is None
    assert cache.stats().misses == 1 and len(cache) == 0


def test_refuses_a_negative_capacity() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 0, got -1"):
        PriorCache(-1)
