"""The coverage-guided fuzzing runs, and would notice an error that is not documented."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="pip install atheris==3.0.0 to run the fuzzing")

ROOT = Path(__file__).resolve().parents[2]
BROKEN = """
from tests.fuzz import readers
readers.READERS["manifest"] = lambda folder, content: 1 // (len(content) // 1000)
readers.fuzz("manifest", 100, 1)
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_every_reader_stands_some_inputs():
    done = run("tests/fuzz/readers.py", "--runs", "200", "--only", "segment header")
    assert done.returncode == 0, done.stdout
    assert "segment header: 200 inputs, seed 1" in done.stdout


def test_an_error_that_is_not_documented_is_found():
    done = run("-c", BROKEN)
    assert done.returncode != 0 and "ZeroDivisionError" in done.stdout + done.stderr
