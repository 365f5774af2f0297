"""Throw-away environments for the systems that benchmarks compare with; nothing of them is stored.

    python benchmarks/peers.py lightzero     # about 5 minutes, 2 GB below .peers/
    python benchmarks/peers.py mctx          # about 1 minute
    python benchmarks/peers.py samplers      # some seconds, 30 MB
    python benchmarks/peers.py torchrl       # the same; runs on the torch of lightzero

Every peer lives in an environment of its own, since its pins contradict ours. Where single modules
of a peer are wanted, its packages are unpacked without what they depend on.
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
PACKAGES = {
    "samplers": ("cpprb==11.0.0", "tianshou==2.0.1"),
    # The newest whose extension loads beside LightZero's torch; none loads beside ours.
    "torchrl": (
        "torchrl==0.13.3",
        "tensordict==0.13.0",
        "pyvers==0.2.3",
        "hoptorch==0.1.4",
        "orjson==3.13.0",
        "importlib_metadata==10.2.0",
        "zipp==4.1.2",
    ),
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


def packages(name: str) -> Path:
    """Folder with the unpacked packages of `name`, to be put on a Python's path.

    Made on first use; RuntimeError with the end of pip's output when it cannot be made.
    """
    folder = FOLDER / name
    stamp = folder / "complete"
    if not stamp.exists():
        print(f"[benchmark] unpacking {' '.join(PACKAGES[name])} into {folder}", flush=True)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        _run([*install, "--target", str(folder), *PACKAGES[name]])
        stamp.touch()
    return folder


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
    parser.add_argument("peers", nargs="+", choices=sorted({*REQUIREMENTS, *PACKAGES}))
    for name in parser.parse_args().peers:
        print(interpreter(name) if name in REQUIREMENTS else packages(name))


if __name__ == "__main__":
    main()
