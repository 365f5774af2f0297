"""How fast does the engine answer, against PriorZero's way of asking?

    python benchmarks/prior_engine.py                            # the tiny model
    python benchmarks/prior_engine.py --concurrent 1 8 --options 12 --seconds 3
    python benchmarks/prior_engine.py --shapes qwen2.5-0.5b      # meant for a GPU

label, text  this project's two ways of scoring, through the backend that runs serve with
prompts      PriorZero's: for each of the K actions the whole prompt with the action's text behind
             it, and the log-probabilities of all its tokens (`prompt_logprobs=1`)

Each cell keeps that many states in flight for some seconds; a worker asks about a new state when
it has the answer to the one before. Cells of one size take turns in `--rounds` rounds. Computed
tokens are those of the prompts that vLLM did not find in its cache. The answers of `text` and
`prompts` are compared before anything is measured: they are the same numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MOST_OPTIONS = 64


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", choices=("tiny", "qwen2.5-0.5b"), default="tiny")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--options", type=int, nargs="+", default=[7, 12, 55])
    parser.add_argument("--seconds", type=float, default=3.0, help="a cell, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kv-cache-mb", type=int, default=512)
    options = parser.parse_args(words)
    if not all(2 <= n <= MOST_OPTIONS for n in options.options):
        parser.error(f"--options must lie in 2..{MOST_OPTIONS}, got {options.options}")
    return options


def main() -> None:
    # vLLM's engine process imports this file again, and does not start where numba is loaded.
    import torch

    from actors.prior.prior_engine_actor import engine_env
    from benchmarks.training_run import machine_line
    from learner.language.tiny_llm import ensure_tiny_llm

    options = parse_options(sys.argv[1:])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.update(engine_env(device))
    from benchmarks.engine_contest import hold, make_half_billion

    print(f"[benchmark] {machine_line()}, {device}, {options.shapes}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        is_tiny = options.shapes == "tiny"
        folder = ensure_tiny_llm() if is_tiny else make_half_billion(Path(work))
        asyncio.run(
            hold(
                folder,
                device,
                kv_cache_mb=options.kv_cache_mb,
                concurrent=options.concurrent,
                n_options=options.options,
                seconds=options.seconds,
                rounds=options.rounds,
            )
        )


if __name__ == "__main__":
    main()
