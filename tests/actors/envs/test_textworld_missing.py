"""Without TextWorld the error says what to install."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# A finder that hides the package, in a process of its own.
CODE = """
import sys, importlib, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "textworld" else find(name, *rest)
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("launch.train", ["--run-dir"]),
        ("launch.pretrain_prior", ["--source", "textworld", "--output"]),
    ],
)
def test_the_command_ends_before_it_starts_and_names_the_remedy(tmp_path, command, words):
    done = subprocess.run(
        [sys.executable, "-c", CODE, command, "--preset", "textworld", *words, tmp_path / "made"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stderr
    assert "needs TextWorld, which is not installed" in done.stderr
    assert "EXTRAS=text make setup" in done.stderr
    assert not (tmp_path / "made").exists()
