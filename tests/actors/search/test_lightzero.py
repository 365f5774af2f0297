"""PUCT against LightZero 0.2.0's C++ tree: the same visits at the root, search by search.

Needs `python benchmarks/peers.py lightzero` once; it is skipped without. A node that is entered for
the first time gives all its actions the same score. LightZero then draws one, seeded by the clock;
we take the highest prior. So its `rand` is replaced by one that says 0, which is the first of
equals, and every node's logits fall from action to action, so that the first is the highest.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from actors.search.config import SearchConfig
from actors.search.planting import NO_REUSE, Roots, plant
from actors.search.selection import make_rule, select
from actors.search.tree import Leaves, make_tree, root_visits

LIGHTZERO = Path(__file__).parents[3] / ".peers" / "lightzero" / "bin" / "python"
DISCOUNT = 0.984375  # 63 / 64
N_SEARCHES = 200


def draw(rng):
    """Root logits [A] and outputs [N, 2 + A], float32, of one search."""
    n_actions, n_simulations = int(rng.integers(2, 19)), int(rng.integers(5, 61))
    outputs = rng.normal(size=(n_simulations, 2 + n_actions)) * rng.choice([0.5, 1.0, 4.0])
    outputs[:, 2:] = -np.sort(-outputs[:, 2:], axis=1)
    root_logits = -np.sort(-rng.normal(size=n_actions))
    return root_logits.astype(np.float32), outputs.astype(np.float32)


def visits_of(root_logits, outputs):
    """Of our tree, started as LightZero's: root value 0, which widens the bounds."""
    n_simulations, n_actions = len(outputs), len(root_logits)
    config = SearchConfig(n_simulations=n_simulations)
    rule = make_rule(config, 1, n_actions, DISCOUNT)._replace(root_in_bounds=True)
    weights = np.exp(root_logits.astype(np.float64) - root_logits.max())
    zero = np.zeros(1, np.int64)
    roots = Roots(
        prior=(weights / weights.sum())[None],
        legal=np.ones((1, n_actions), np.bool_),
        value=np.zeros(1),
        step=zero,
        window=np.zeros((1, 1), np.int64),
        first_page=zero + 2,
        first_action=zero.astype(np.int32),
        reuse=np.full(1, NO_REUSE),
    )
    tree = make_tree(1, n_simulations, n_actions, 1)
    plant(tree, zero, roots)
    leaves = Leaves(np.zeros((4, 1), np.int64), np.zeros((1, 1), np.int64))
    select(tree, zero, rule, n_simulations, leaves)
    for output in outputs:
        select(tree, zero, rule, n_simulations, leaves, output[None])
    return root_visits(tree, zero)[0]


@pytest.fixture
def first_of_equals(tmp_path):
    """Environment variables with which LightZero's `rand` says 0."""
    source, library = tmp_path / "rand.c", tmp_path / "rand.so"
    source.write_text("int rand(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return os.environ | {"LD_PRELOAD": str(library)}


@pytest.mark.skipif(
    not LIGHTZERO.exists(), reason="run `python benchmarks/peers.py lightzero` first"
)
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_visits_equal_lightzeros(tmp_path, first_of_equals):
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(N_SEARCHES)]
    problems = {"n_problems": N_SEARCHES, "discount": DISCOUNT}
    for i, (root_logits, outputs) in enumerate(drawn):
        problems |= {f"{i}/root_logits": root_logits, f"{i}/outputs": outputs}
    files = [tmp_path / "problems.npz", tmp_path / "answers.npz"]
    np.savez(files[0], **problems)
    script = Path(__file__).with_name("lightzero_searches.py")
    subprocess.run([LIGHTZERO, script, *files], check=True, env=first_of_equals)
    answers = np.load(files[1])
    for i, (root_logits, outputs) in enumerate(drawn):
        np.testing.assert_array_equal(visits_of(root_logits, outputs), answers[str(i)], str(i))
