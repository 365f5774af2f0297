"""How far is search that reads the cache from the same model run over the raw tokens?

    python benchmarks/search_exactness.py        # some seconds after the peer is installed

Ours and LightZero 0.2.0's UniZero with equal weights and shapes, float32, 8 episodes side by side,
random actions, a search of 16 simulations at each of 16 steps; largest and mean absolute deviation
of policy logits and decoded value, of roots and of tree nodes. Cached is what the search was told.

Uncached, ours: one pass over the whole history; for a node its imagined steps are recomputed from
the real ones, so that an error in an imagined latent would show. Uncached, LightZero: its own model
over the real latents and those that its search imagined, as they are. Its window has no single
meaning once it slides, so the pass over the observations that its cache claims to hold and the pass
over all of them (as far as its positions reach, 10) are both taken, and for every root and node
the closer one counts. Both decode values with bins one apart.

LightZero slides by adding a difference of position embeddings to stored keys and values, and pads
shorter caches of a batch with zeros that are attended to. The weights are those of fresh models
with random heads; how far off trained ones are is not said here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from lightzero import LightZero, comparable_model
from search_speed import N_INPUTS
from training_run import machine_line

from actors.search import Planner, SearchConfig
from actors.search.contexts import RootStep
from actors.search.model_step import ModelStep
from learner.world_model import WorldModel

N_ROOTS, N_SIMULATIONS, N_STEPS, WINDOW_STEPS = 8, 16, 16, 4

Deviations = dict[str, dict[str, list[float]]]  # root or node; logits or value; largest, mean


class OurDeviation:
    """Real steps, each searched and compared with passes over the whole history."""

    def __init__(self, model: WorldModel) -> None:
        config = SearchConfig(n_simulations=N_SIMULATIONS)
        self._planner = Planner(model, config, n_envs=N_ROOTS, discount=0.997, seed=0)
        self._model = model
        self._rng = np.random.default_rng(0)
        self._latents: list[torch.Tensor] = []
        self._actions: list[np.ndarray] = []
        self._roots: list[RootStep] = []
        self._outputs: list[np.ndarray] = []  # [B, 2 + A] of each simulation
        self._listen()

    def _listen(self) -> None:
        advance, run = self._planner._contexts.advance, ModelStep.run

        def advance_and_keep(*arguments: np.ndarray) -> RootStep:
            self._roots.append(advance(*arguments))
            return self._roots[-1]

        def run_and_keep(step: ModelStep) -> np.ndarray:
            outputs = run(step)
            self._outputs.append(outputs.copy())
            return outputs

        self._planner._contexts.advance = advance_and_keep
        ModelStep.run = run_and_keep

    @torch.inference_mode()
    def step(self) -> Deviations:
        """Deviations after one more real step."""
        obs = self._rng.normal(size=(N_ROOTS, N_INPUTS)).astype(np.float32)
        last = self._actions[-1] if self._actions else np.full(N_ROOTS, -1)
        self._outputs.clear()
        self._planner.search(np.arange(N_ROOTS), obs, last)
        self._latents.append(self._model.encode(torch.from_numpy(obs)))
        answer = {"root": self._of_roots(), "node": self._of_nodes()}
        self._actions.append(self._rng.integers(self._model.spec.n_actions, size=N_ROOTS))
        return answer

    def _of_roots(self) -> dict[str, list[float]]:
        root, actions = self._roots[-1], np.array(self._actions, np.int64).reshape(-1, N_ROOTS).T
        output = self._model(torch.stack(self._latents, 1), torch.tensor(actions))
        value = self._model.support.decode(output.value_logits[:, -1]).numpy()
        logits = output.policy_logits[:, -1].numpy()
        return {"logits": _sizes(root.logits - logits), "value": _sizes(root.value - value)}

    def _of_nodes(self) -> dict[str, list[float]]:
        nodes, gaps = self._planner._tree.nodes, ([], [])
        for env in range(N_ROOTS):
            for node, outputs in enumerate(self._outputs, start=1):
                value, logits = self._imagined(env, _path(nodes[env], node))
                gaps[0].append(outputs[env, 2:] - logits)
                gaps[1].append(outputs[env, 1] - value)
        return {"logits": _sizes(np.array(gaps[0])), "value": _sizes(np.array(gaps[1]))}

    def _imagined(self, env: int, path: list[int]) -> tuple[float, np.ndarray]:
        """Value and policy logits at the end of `path` from the newest real step."""
        latents = torch.stack([latents[env] for latents in self._latents])[None]
        played = [int(actions[env]) for actions in self._actions]
        # One more action makes the last observation appear.
        output = self._model.imagine(latents, torch.tensor([[*played, *path, 0]]))
        value = self._model.support.decode(output.value_logits[0, -1])
        return float(value), output.policy_logits[0, -1].numpy()


def _path(nodes: np.ndarray, node: int) -> list[int]:
    path: list[int] = []
    while node:
        path.insert(0, int(nodes["action"][node]))
        node = nodes["parent"][node]
    return path


def _sizes(gaps: np.ndarray) -> list[float]:
    return [float(np.abs(gaps).max()), float(np.abs(gaps).mean())]


def cell(steps: list[Deviations], where: str, what: str) -> str:
    pairs = [step[where][what] for step in steps]
    return f"{max(p[0] for p in pairs):.1e}, {np.mean([p[1] for p in pairs]):.1e}"


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=128)
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = comparable_model(N_ROOTS, N_SIMULATIONS, options.width)
    sizes = {"n_roots": N_ROOTS, "n_simulations": N_SIMULATIONS}
    with LightZero(model, discount=0.997, **sizes) as lightzero:
        theirs = [lightzero.ask("deviation") for _ in range(N_STEPS)]
    ours = OurDeviation(model)
    own = [ours.step() for _ in range(N_STEPS)]
    print(f"[benchmark] {machine_line()}; {options.width} wide, window of {WINDOW_STEPS} steps")
    print("| steps | of | largest, mean | ours | LightZero |")
    print("|---|---|---|---|---|")
    for name, steps in (
        (f"1 to {WINDOW_STEPS}, window filling", slice(0, WINDOW_STEPS)),
        (f"{WINDOW_STEPS + 1} to {N_STEPS}, window sliding", slice(WINDOW_STEPS, N_STEPS)),
    ):
        for where in ("root", "node"):
            for what in ("logits", "value"):
                cells = [cell(side[steps], where, what) for side in (own, theirs)]
                print(f"| {name} | {where}s | {what} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
