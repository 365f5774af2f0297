"""Signs that a network is losing its plasticity or blowing up: dormant units and logit ranges.

Looked at in one update out of `learner.watch_every`, with hooks that are there for that one only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from learner.world_model import WorldModel
from learner.world_model.transformer import Block

DORMANT_BELOW = 0.025  # of the layer's mean activity; the definition is Sokar's, the bound ours


class HealthWatch:
    """While entered, looks at the hidden units and logits of a model's forward passes.

    Hidden units are the outputs of SiLU: of encoder, heads and the transformer's MLPs. A channel of
    a convolution counts as one unit.
    """

    def __init__(self, model: WorldModel) -> None:
        self._model = model
        self._activity: dict[str, Tensor] = {}  # by layer: sums over rows, [units]
        self._ranges: dict[str, float] = {}  # by head
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> HealthWatch:
        heads = {"policy": self._model.policy_head, "value": self._model.value_head}
        for name, head in heads.items():
            self._hooks.append(head.register_forward_hook(self._ranger(name)))
        for name, module in self._model.named_modules():
            if isinstance(module, nn.SiLU):
                self._hooks.append(module.register_forward_hook(self._summer(name)))
            elif isinstance(module, Block):
                summer = self._summer(name, functional.silu)  # which the block applies itself
                self._hooks.append(module.mlp_in.register_forward_hook(summer))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def figures(self) -> dict[str, float]:
        """The metrics of this look."""
        ranges = {f"{name}_logit_range": value for name, value in self._ranges.items()}
        return {"dormant_share": self.dormant_share(), **ranges}

    def dormant_share(self) -> float:
        """Of all hidden units, those with an activity of at most DORMANT_BELOW of their layer's
        mean (Sokar et al. 2023, arXiv 2302.12902, definition 3.1).
        """
        n_dormant = n_units = 0
        for activity in self._activity.values():
            # Of a layer that is all 0, every unit is dormant.
            score = activity / activity.mean().clamp(min=torch.finfo(activity.dtype).tiny)
            n_dormant += int((score <= DORMANT_BELOW).sum())
            n_units += len(activity)
        return n_dormant / n_units

    def _summer(
        self, layer: str, activation: Callable[[Tensor], Tensor] | None = None
    ) -> Callable[[nn.Module, object, Tensor], None]:
        def add(module: nn.Module, inputs: object, output: Tensor) -> None:
            units = output.detach().float()
            units = units if activation is None else activation(units)
            rows = units.movedim(1, -1) if units.ndim == 4 else units  # channels of an image
            activity = rows.abs().flatten(0, -2).sum(0)
            earlier = self._activity.get(layer)
            self._activity[layer] = activity if earlier is None else earlier + activity

        return add

    def _ranger(self, head: str) -> Callable[[nn.Module, object, Tensor], None]:
        def widen(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._ranges[head] = max(self._ranges.get(head, 0.0), logit_range(output))

        return widen


def logit_range(logits: Tensor) -> float:
    """Largest distance of two logits [..., n] of one position."""
    logits = logits.detach().float()
    return float((logits.amax(-1) - logits.amin(-1)).amax())
