"""Without TextWorld the error says what to install."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# A finder that hides the package, in a process of its own.
CODE = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "textworld" else find(name, *rest)
from launch import train
sys.exit(train.main(["--preset", "textworld", "--run-dir", sys.argv[1]]))
"""


def test_the_run_ends_before_it_starts_and_names_the_remedy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2, done.stderr
    assert "needs TextWorld, which is not installed" in done.stderr
    assert "EXTRAS=text make setup" in done.stderr
    assert not (tmp_path / "run").exists()
