"""What a language learner keeps in a checkpoint: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SCHEMA_VERSION = 1
_TENSORS = "language.safetensors"
_STATE = "language.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class LanguageState:
    """Counters and the random state of the label dealer."""

    version: int
    updates: int
    published_at: int
    rng: dict[str, object]
    skipped: int = 0  # updates that were not finite; checkpoints from before have none


def write_state(
    folder: Path,
    state: LanguageState,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW,
) -> None:
    """Writes into `folder`, made if missing; the caller makes the whole checkpoint atomic."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"parameter/{name}": p.detach().contiguous() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for moment in _MOMENTS:
            value = optimizer.state[parameter].get(moment)
            if value is not None:
                tensors[f"{moment}/{name}"] = value.contiguous()
    save_file(tensors, folder / _TENSORS)
    content = {"schema_version": SCHEMA_VERSION, **asdict(state)}
    (folder / _STATE).write_text(json.dumps(content), encoding="utf-8")


def read_state(
    folder: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.AdamW
) -> LanguageState:
    """Copies the tensors into place.

    Raises ValueError, before anything changes, when they are another adapter's, damaged or not
    finite.
    """
    state = _read_counters(folder / _STATE)
    try:
        tensors = load_file(folder / _TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / _TENSORS} can't be read: {error}") from error
    # All is checked before anything changes.
    moments = {name: _checked(folder, tensors, name, p) for name, p in parameters.items()}
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"parameter/{name}"])
        optimizer.state.pop(parameter, None)  # none were saved before the first update
        if moments[name]:
            optimizer.state[parameter] = {
                moment: value if moment == "step" else value.to(parameter.device)
                for moment, value in moments[name].items()
            }
    return state


def _checked(
    folder: Path, tensors: Mapping[str, Tensor], name: str, parameter: Tensor
) -> dict[str, Tensor]:
    """The moments of one parameter, if it and they fit and are finite."""
    saved = tensors.get(f"parameter/{name}")
    if saved is None or saved.shape != parameter.shape:
        shape = "nothing" if saved is None else tuple(saved.shape)
        raise ValueError(
            f"checkpoint {folder} holds {shape} for {name}, this model has "
            f"{tuple(parameter.shape)}; keep prior.model and language.lora_rank as they were"
        )
    moments = {m: tensors[f"{m}/{name}"] for m in _MOMENTS if f"{m}/{name}" in tensors}
    if moments and len(moments) < len(_MOMENTS):
        raise ValueError(f"{folder / _TENSORS}: {name} has only {', '.join(moments)}")
    for kind, value in {"parameter": saved, **moments}.items():
        expected = torch.Size([]) if kind == "step" else parameter.shape
        if value.shape != expected or not value.is_floating_point():
            raise ValueError(
                f"{folder / _TENSORS}: {kind}/{name} is {value.dtype} {tuple(value.shape)}, "
                f"expected floats {tuple(expected)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{folder / _TENSORS}: {kind}/{name} holds NaN or infinity")
    return moments


def _read_counters(path: Path) -> LanguageState:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object")
    content = {"skipped": 0, **content}
    if content.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version must be {SCHEMA_VERSION}")
    names = {field.name for field in fields(LanguageState)}
    if content.keys() != names:
        wrong = ", ".join(sorted(names ^ content.keys()))[:200]
        raise ValueError(f"{path}: missing or unknown: {wrong}")
    for name in sorted(names - {"rng"}):
        if type(content[name]) is not int or not 0 <= content[name] < 2**63:
            raise ValueError(f"{path}: {name} must be a whole number of at least 0")
    try:
        np.random.default_rng().bit_generator.state = content["rng"]
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path}: rng is no state of a generator: {error}") from error
    return LanguageState(**content)
