"""Takes over what fits of a saved learner whose model was another: tensors by name and shape.

What does not fit keeps its fresh value, and every such key is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from learner.checkpoint import (
    AVERAGE_FILE,
    COUNTERS_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    TARGET_FILE,
    LearnerCounters,
    read_counters,
    read_tensors,
)


@dataclass(frozen=True, slots=True)
class FileMatch:
    """What became of the keys of one file.

    missing: keys of the learner that the file does not have
    unexpected: keys of the file that the learner does not have
    other_shape: keys of both, with the file's shape and the learner's
    """

    n_loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shape: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def is_complete(self) -> bool:
        return not (self.missing or self.unexpected or self.other_shape)


def load_matching(
    folder: Path,
    model: nn.Module,
    target_model: nn.Module,
    average_model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[LearnerCounters, dict[str, FileMatch]]:
    """Fills the four objects in place with what fits; returns counters and matches by file name.

    ValueError if a file can't be read, or if no tensor of the model fits: that would be a new start
    under the name of a continuation.
    """
    counters = read_counters(folder / COUNTERS_FILE)
    models = {MODEL_FILE: model, TARGET_FILE: target_model}
    if average_model is not model:
        models[AVERAGE_FILE] = average_model
    found = {name: read_tensors(folder / name, None) for name in [*models, OPTIMIZER_FILE]}
    matches = {
        name: _match(found[name], _shapes(module.state_dict())) for name, module in models.items()
    }
    if matches[MODEL_FILE].n_loaded == 0:
        raise ValueError(
            f"{folder / MODEL_FILE}: no tensor fits the model by name and shape; use another "
            "checkpoint, or start from nothing with --resume never"
        )
    for name, module in models.items():
        own = module.state_dict()
        module.load_state_dict(own | _fitting(found[name], _shapes(own)))
    matches[OPTIMIZER_FILE] = _load_moments(found, model, optimizer)
    return counters, matches


def _load_moments(
    found: Mapping[str, Mapping[str, Tensor]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> FileMatch:
    """Moments of the parameters that were taken over; the others begin with none."""
    taken = _fitting(found[MODEL_FILE], _shapes(dict(model.named_parameters())))
    saved: dict[str, dict[str, Tensor]] = {}
    for key, value in found[OPTIMIZER_FILE].items():
        name, _, moment = key.rpartition("/")
        saved.setdefault(name, {})[moment] = value
    missing, n_loaded, wrong = [], 0, {}
    for name, parameter in model.named_parameters():
        optimizer.state.pop(parameter, None)
        moments = saved.get(name, {})
        for moment, value in moments.items():
            if value.ndim > 0 and value.shape != parameter.shape:
                wrong[f"{name}/{moment}"] = (tuple(value.shape), tuple(parameter.shape))
        if not moments:
            missing.append(name)
        elif name in taken and not any(key.rpartition("/")[0] == name for key in wrong):
            optimizer.state[parameter] = {
                moment: value.to(parameter.device) for moment, value in moments.items()
            }
            n_loaded += len(moments)
    unexpected = sorted(
        f"{name}/{moment}"
        for name in saved.keys() - dict(model.named_parameters()).keys()
        for moment in saved[name]
    )
    # Before the first update there are none at all, and nothing is missed.
    missing = missing if saved else []
    return FileMatch(n_loaded, tuple(missing), tuple(unexpected), wrong)


def _match(found: Mapping[str, Tensor], own: Mapping[str, tuple[int, ...]]) -> FileMatch:
    shapes = _shapes(found)
    both = sorted(shapes.keys() & own.keys())
    return FileMatch(
        n_loaded=sum(shapes[name] == own[name] for name in both),
        missing=tuple(sorted(own.keys() - shapes.keys())),
        unexpected=tuple(sorted(shapes.keys() - own.keys())),
        other_shape={n: (shapes[n], own[n]) for n in both if shapes[n] != own[n]},
    )


def _fitting(found: Mapping[str, Tensor], own: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {n: value for n, value in found.items() if own.get(n) == tuple(value.shape)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}
