"""Throw-away environments for the systems that benchmarks compare with; nothing of them is stored.

    python benchmarks/peers.py lightzero     # about 5 minutes, 2 GB below .peers/
    python benchmarks/peers.py mctx          # about 1 minute

Every peer lives in an environment of its own, since its pins contradict ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".peers"
REQUIREMENTS = {
    "lightzero": ("lightzero==0.2.0", "setuptools<80"),
    "mctx": ("mctx==0.0.6",),
}


def interpreter(name: str) -> Path:
    """Python of the environment with the peer `name`, made on first use.

    RuntimeError with the end of pip's output when it cannot be made.
    """
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / "complete"
    if not stamp.exists():
        print(f"[benchmark] installing {' '.join(REQUIREMENTS[name])} into {folder}", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]])
        stamp.touch()
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed; remove {FOLDER} and try again:\n{done.stderr[-2000:]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="+", choices=sorted(REQUIREMENTS))
    for name in parser.parse_args().peers:
        print(interpreter(name))


if __name__ == "__main__":
    main()
