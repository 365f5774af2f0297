"""Builds the tiny offline language model: python launch/make_tiny_llm.py [--output DIR].

Training does this by itself when no prior.model is given; the command is for building it ahead,
for example into a container image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from learner.language.tiny_llm import TinyRecipe, ensure_tiny_llm


def main(arguments: list[str] | None = None) -> None:
    """Prints the folder; with the folder already built, only that."""
    parser = argparse.ArgumentParser(
        prog="make_tiny_llm.py", description="Build the tiny offline language model."
    )
    parser.add_argument(
        "--output", type=Path, help="folder to make; default: below ~/.cache/warpzone"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights and the tokenizer's corpus"
    )
    options = parser.parse_args(arguments)
    folder: Path | None = options.output
    if folder is not None and folder.exists() and not (folder / "config.json").is_file():
        parser.error(f"--output {folder} exists and holds no model; name a new folder")
    sys.stdout.write(f"{ensure_tiny_llm(folder, TinyRecipe(seed=options.seed))}\n")


if __name__ == "__main__":
    main()
