"""How far is a root that reads the cache from the same model run over the raw tokens?

    python benchmarks/search_exactness.py        # about a minute after the peer is installed

Ours and LightZero 0.2.0's UniZero with equal weights and shapes, float32, 8 episodes side by side,
random actions, 16 steps; the largest deviation over all episodes of policy logits and decoded
value. Cached is what the search sees at its root. Uncached is one pass of the same model over the
whole history for ours. LightZero's window has no single meaning once it slides, so the pass over
the steps its cache claims to hold and the pass over the whole history (as far as its positions
reach, 10 steps) are both taken, and the closer one counts.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from lightzero import LightZero
from search_speed import N_INPUTS, Case, make_model
from training_run import machine_line

from actors.search import SearchConfig
from actors.search.contexts import Contexts, make_cache
from cache.pool import EMPTY
from learner.world_model import WorldModel

N_ROOTS, N_STEPS, WINDOW_STEPS = 8, 16, 4


class OurDeviation:
    """Real steps through the cache, each compared with a pass over the whole history."""

    def __init__(self, model: WorldModel) -> None:
        device = torch.device("cpu")
        cache = make_cache(model, SearchConfig(), N_ROOTS, device)
        self._contexts = Contexts(model, cache, N_ROOTS, device)
        self._model = model
        self._rng = np.random.default_rng(0)
        self._obs: list[torch.Tensor] = []
        self._actions: list[np.ndarray] = []

    @torch.inference_mode()
    def step(self) -> tuple[float, float]:
        """Largest deviations of logits and value after one more real step."""
        obs = self._rng.normal(size=(N_ROOTS, N_INPUTS)).astype(np.float32)
        last = self._actions[-1] if self._actions else np.full(N_ROOTS, -1)
        nothing = np.full(N_ROOTS, EMPTY)
        root = self._contexts.advance(np.arange(N_ROOTS), obs, last, nothing)
        self._obs.append(self._model.encode(torch.from_numpy(obs)))
        played = [torch.from_numpy(a) for a in self._actions]
        actions = torch.stack(played, 1) if played else torch.zeros(N_ROOTS, 0, dtype=torch.int64)
        output = self._model(torch.stack(self._obs, 1), actions)
        value = self._model.support.decode(output.value_logits[:, -1]).numpy()
        logits = output.policy_logits[:, -1].numpy()
        self._actions.append(self._rng.integers(self._model.spec.n_actions, size=N_ROOTS))
        return float(np.abs(root.logits - logits).max()), float(np.abs(root.value - value).max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model(
        Case(N_ROOTS, 1, options.width, 2, WINDOW_STEPS, 8, 4, mlp_hidden=options.width)
    )
    ours, theirs = OurDeviation(model), []
    with LightZero(model, n_roots=N_ROOTS, n_simulations=1, discount=0.997) as lightzero:
        theirs = [lightzero.ask("deviation") for _ in range(N_STEPS)]
    own = [ours.step() for _ in range(N_STEPS)]
    print(f"[benchmark] {machine_line()}; {options.width} wide, window of {WINDOW_STEPS} steps")
    print("| steps | logits: ours / LightZero | value: ours / LightZero |")
    print("|---|---|---|")
    for name, steps in (
        (f"1 to {WINDOW_STEPS}, window filling", slice(0, WINDOW_STEPS)),
        (f"{WINDOW_STEPS + 1} to {N_STEPS}, window sliding", slice(WINDOW_STEPS, N_STEPS)),
    ):
        logits, value = (max(column) for column in zip(*own[steps], strict=True))
        print(
            f"| {name} | {logits:.1e} / {max(t['logits'] for t in theirs[steps]):.1e} | "
            f"{value:.1e} / {max(t['value'] for t in theirs[steps]):.1e} |"
        )


if __name__ == "__main__":
    main()
