"""What a language learner keeps in a checkpoint: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
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
    """Copies the tensors into place. Raises ValueError when they are another adapter's."""
    content = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if content.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{folder / _STATE} has another schema than {SCHEMA_VERSION}")
    tensors = load_file(folder / _TENSORS)
    for name, parameter in parameters.items():
        saved = tensors.get(f"parameter/{name}")
        if saved is None or saved.shape != parameter.shape:
            shape = "nothing" if saved is None else tuple(saved.shape)
            raise ValueError(
                f"checkpoint {folder} holds {shape} for {name}, this model has "
                f"{tuple(parameter.shape)}; keep prior.model and language.lora_rank as they were"
            )
        with torch.no_grad():
            parameter.copy_(saved)
        moments = {m: tensors[f"{m}/{name}"] for m in _MOMENTS if f"{m}/{name}" in tensors}
        if moments:
            moved = {m: v.to(parameter.device) if m != "step" else v for m, v in moments.items()}
            optimizer.state[parameter] = moved
    return LanguageState(**content)
