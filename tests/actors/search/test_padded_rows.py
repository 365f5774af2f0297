"""Row counts of the encoder are rounded, which costs little and changes nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.contexts import padded_rows


@given(st.integers(1, 100_000))
def test_few_sizes_and_little_waste(n_rows):
    assert n_rows <= padded_rows(n_rows) <= max(n_rows, 1.5 * n_rows)


@pytest.mark.parametrize(("n_most", "n_sizes"), [(8, 6), (64, 12), (512, 18)])
def test_how_many_sizes_there_are(n_most, n_sizes):
    assert len({padded_rows(n) for n in np.arange(1, n_most + 1).tolist()}) == n_sizes
