"""LightZero's side of search_exactness.py: what it evaluated, against its model over raw tokens.

Imported by `lightzero_search.py`. Knows the tokens behind every evaluation: a node is told by the
bytes of its latent, as LightZero itself tells it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

MOST_STEPS = 10  # LightZero's learned positions end there


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Tokens up to a root or node, and what the search was told about it.

    latents [T] of [1, E], actions [T - 1] between them
    claimed: observations that its cache claims to hold, the newest included
    """

    latents: list[torch.Tensor]
    actions: list[int]
    claimed: int
    logits: torch.Tensor
    value_logits: torch.Tensor


class Recorder:
    """Keeps the evaluations of one root inference and of the search that follows it."""

    def __init__(self, model: Any, window_steps: int) -> None:
        self._world = model.world_model
        self._window = window_steps
        self._infer: Callable[..., Any] = model.recurrent_inference
        self._known: list[dict[bytes, Evaluation]] = []
        self.nodes: list[Evaluation] = []
        model.recurrent_inference = self._recurrent_inference

    def start(self, output: Any, history: list[torch.Tensor], actions: list[list[int]]) -> None:
        """Root inference `output` after `actions` of all episodes and latents, newest last."""
        self._known, self.nodes = [], []
        claimed = min(len(history), self._window)
        for b in range(len(history[0])):
            latents, played = [h[b] for h in history], [a[b] for a in actions]
            root = Evaluation(
                latents, played, claimed, output.policy_logits[b].clone(), output.value[b].clone()
            )
            self._known.append({_key(latents[-1]): root})

    @property
    def roots(self) -> list[Evaluation]:
        return [next(iter(known.values())) for known in self._known]

    def _recurrent_inference(self, history: Any, *rest: Any) -> Any:
        output = self._infer(history, *rest)
        before, actions = history[-1]
        # Two tokens were added to what each cache held: o a o ... o.
        sizes = self._world.keys_values_wm_size_list_current
        for b, known in enumerate(self._known):
            parent = known[np.ascontiguousarray(before[b]).tobytes()]
            latent = output.latent_state[b].clone()
            node = Evaluation(
                [*parent.latents, latent],
                [*parent.actions, int(actions[b])],
                (sizes[b] + 1) // 2,
                output.policy_logits[b].clone(),
                output.value[b].clone(),
            )
            known[_key(latent)] = node
            self.nodes.append(node)
        return output


def _key(latent: torch.Tensor) -> bytes:
    return latent.cpu().numpy().tobytes()


def deviations(
    world: Any, decode: Callable[[torch.Tensor], torch.Tensor], rows: list[Evaluation]
) -> dict[str, list[float]]:
    """Largest and mean deviation of logits and value over `rows`.

    Two readings of a window: the observations that the cache claims to hold, and all of them. The
    closer counts, for every row, for logits and value each. Decoded in float64: LightZero's own
    float32 formula is coarser than what is measured.
    """
    readings = (
        [row.claimed for row in rows],
        [min(len(row.latents), MOST_STEPS) for row in rows],
    )
    value = decode(torch.stack([row.value_logits.reshape(-1) for row in rows]).double())
    logits = torch.stack([row.logits.reshape(-1) for row in rows])
    closest: list[torch.Tensor] = []
    for depths in readings:
        wanted_logits, wanted_value = _uncached(world, rows, depths)
        gaps = [
            (logits - wanted_logits).abs(),
            (value - decode(wanted_value.double())).abs().reshape(-1, 1),
        ]
        # A row of logits is taken as a whole, by its largest gap.
        closest = [_closer(a, b) for a, b in zip(closest, gaps, strict=True)] if closest else gaps
    names = ("logits", "value")
    return {n: [float(g.max()), float(g.mean())] for n, g in zip(names, closest, strict=True)}


def _closer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where((a.amax(1) <= b.amax(1))[:, None], a, b)


@torch.no_grad()
def _uncached(
    world: Any, rows: list[Evaluation], depths: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Policy and value logits of each row from one pass over its last `depths` observations."""
    groups: dict[int, list[int]] = defaultdict(list)
    for i, depth in enumerate(depths):
        groups[depth].append(i)
    logits: list[Any] = [None] * len(rows)
    values: list[Any] = [None] * len(rows)
    for depth, members in groups.items():
        latents = torch.stack([torch.stack(rows[i].latents[-depth:]) for i in members])
        # An action closes the last pair; nothing that is read comes after it.
        played = [[*rows[i].actions[len(rows[i].actions) - depth + 1 :], 0] for i in members]
        actions = torch.tensor(played, device=latents.device)[..., None]
        both = {"obs_embeddings_and_act_tokens": (latents, actions)}
        output = world.forward(both, start_pos=[0] * len(members))
        for i, row_logits, row_value in zip(
            members, output.logits_policy[:, -1], output.logits_value[:, -1], strict=True
        ):
            logits[i], values[i] = row_logits, row_value
    return torch.stack(logits), torch.stack(values)
