"""How far is a whole search on a GPU from what the hardware allows?

    python benchmarks/search_gpu.py                 # on a machine with a CUDA GPU, about 2 minutes
    python benchmarks/search_gpu.py --device cpu    # the same code without graphs, in float32

For each number of roots: time per simulation of whole searches (50 simulations, 768 wide, 2 layers,
window of 4 steps, bfloat16 on CUDA), the root's own inference included, against a floor. The floor
is what one simulation must at least move and compute, over ceilings measured on the device in the
same run: weights of two transformer passes and the heads they need read once per pass, the window's
keys and values read once per pass and the leaf's page written, over the bandwidth of a large copy;
multiplications and additions over the speed of a large matrix product; the larger of the two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from search_speed import Case, make_model, time_searches
from torch import nn
from training_run import machine_line

from learner.world_model import WorldModel

N_SIMULATIONS = 50
COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}  # far beyond any cache
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches on one large operation."""

    bytes_per_s: float  # read plus written
    flops_per_s: float  # multiplications plus additions


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def best_seconds(run, device: str) -> float:
    """Shortest of several timed calls of `run`, after two warm-up calls."""
    times = []
    for _ in range(12):
        synchronise(device)
        start = perf_counter()
        run()
        synchronise(device)
        times.append(perf_counter() - start)
    return min(times[2:])


def measure_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    source = torch.zeros(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = best_seconds(lambda: target.copy_(source), device)
    n = MATRIX_SIZE[device]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product_s = best_seconds(lambda: a @ b, device)
    return Ceilings(2 * COPY_BYTES[device] / copy_s, 2 * n**3 / product_s)


def n_parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def floor_seconds(model: WorldModel, n_roots: int, ceilings: Ceilings) -> tuple[float, str]:
    """Least time of one simulation over `n_roots` roots, and what bounds it."""
    config = model.config
    n_weights = 2 * n_parameters(model.transformer) + n_parameters(
        model.latent_in, model.policy_head, model.value_head, model.reward_head, model.latent_head
    )
    item_bytes = next(model.parameters()).element_size()
    page_numbers = config.n_layers * 2 * 2 * config.embed_dim
    n_window = config.window_steps - 1
    moved = item_bytes * (n_weights + n_roots * page_numbers * (2 * n_window + 1))
    # Two tokens, each a product with every key and one with every value of the window.
    attention = 2 * n_roots * 2 * n_window * page_numbers
    computed = 2 * n_roots * n_weights + attention
    by_bytes, by_flops = moved / ceilings.bytes_per_s, computed / ceilings.flops_per_s
    return max(by_bytes, by_flops), "bandwidth" if by_bytes > by_flops else "arithmetic"


def check_device(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "error: device 'cuda' was asked for but PyTorch sees no usable GPU "
            f"(torch {torch.__version__}); run this on a GPU machine, or use --device cpu"
        )
    return device


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--roots", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time of each row")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    device = check_device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ceilings = measure_ceilings(device, dtype)
    name = torch.cuda.get_device_name() if device == "cuda" else "one thread"
    print(
        f"[benchmark] {machine_line()}; {name}: {ceilings.bytes_per_s / 1e9:,.0f} GB/s, "
        f"{ceilings.flops_per_s / 1e12:.2f} TFLOP/s {str(dtype).removeprefix('torch.')}"
    )
    print("| roots | search, ms | per simulation, us | model / tree / rest | floor, us | x floor |")
    print("|---|---|---|---|---|---|")
    for n_roots in options.roots:
        case = Case(
            n_roots,
            N_SIMULATIONS,
            options.width,
            2,
            4,
            n_heads=8,
            mlp_ratio=4,
            mlp_hidden=options.width,
        )
        model = make_model(case).to(device)
        model.store_parameters_in(dtype)
        times = np.array(time_searches(model, case, options.seconds, device))
        wall, _, in_model, in_tree = (statistics.median(column) for column in times.T)
        floor, bound = floor_seconds(model, n_roots, ceilings)
        each = wall / N_SIMULATIONS
        print(
            f"| {n_roots} | {wall * 1e3:.1f} | {each * 1e6:,.0f} | {in_model / wall:.0%} / "
            f"{in_tree / wall:.0%} / {1 - (in_model + in_tree) / wall:.0%} | "
            f"{floor * 1e6:,.1f} ({bound}) | {each / floor:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
