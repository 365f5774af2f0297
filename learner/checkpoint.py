"""The learner's state on disk: safetensors for arrays, JSON for counters; never pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learner.weights import Weights

MODEL_FILE = "model.safetensors"
TARGET_FILE = "target.safetensors"
AVERAGE_FILE = "average.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
COUNTERS_FILE = "learner.json"


@dataclass(slots=True)
class LearnerCounters:
    """What a learner counts; mutable, owned by one learner."""

    updates: int = 0
    skipped: int = 0  # updates whose loss or gradient was not finite
    version_offset: int = 0  # added to the updates to keep versions growing across restarts
    rng_state: dict[str, object] = field(default_factory=dict)
    watched: dict[str, float] = field(default_factory=dict)  # newest figures of health.py


def save_learner(
    folder: Path,
    model: nn.Module,
    target_model: nn.Module,
    average_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: LearnerCounters,
) -> None:
    """Write five files below `folder`, which is created. OSError if the disk does not take them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in (
        (MODEL_FILE, model.state_dict()),
        (TARGET_FILE, target_model.state_dict()),
        (AVERAGE_FILE, average_model.state_dict()),
        (OPTIMIZER_FILE, _moments(model, optimizer)),
    ):
        try:
            save_file(_contiguous(tensors), folder / name)
        except SafetensorError as error:
            raise OSError(f"{folder / name} can't be written: {error}") from error
    text = json.dumps(asdict(counters), indent=1, sort_keys=True)
    (folder / COUNTERS_FILE).write_text(text, encoding="utf-8")


def load_learner(
    folder: Path,
    model: nn.Module,
    target_model: nn.Module,
    average_model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> LearnerCounters:
    """Fill the four objects in place; ValueError names the file and key that do not fit.

    All files are read and checked before anything changes.
    """
    counters = read_counters(folder / COUNTERS_FILE)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = read_tensors(folder / MODEL_FILE, expected)
    target_state = read_tensors(folder / TARGET_FILE, expected)
    average_state = read_tensors(folder / AVERAGE_FILE, expected)
    moments = read_tensors(folder / OPTIMIZER_FILE, None)
    _check_moments(folder / OPTIMIZER_FILE, moments, model)
    model.load_state_dict(state)
    target_model.load_state_dict(target_state)
    if average_model is not model:  # the run may have given up averaging since
        average_model.load_state_dict(average_state)
    for name, parameter in model.named_parameters():
        kept = {
            key.rpartition("/")[2]: value.to(parameter.device)
            for key, value in moments.items()
            if key.rpartition("/")[0] == name
        }
        optimizer.state.pop(parameter, None)
        if kept:
            optimizer.state[parameter] = kept
    return counters


def checkpoint_weights(folder: Path) -> Weights:
    """What the learner saved below `folder` would publish: its averaged model and the version."""
    counters = read_counters(folder / COUNTERS_FILE)
    tensors = read_tensors(folder / AVERAGE_FILE, None)
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return Weights(counters.updates + counters.version_offset, arrays)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state as "parameter name/moment name"; empty before the first step."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def read_tensors(path: Path, expected: dict[str, tuple[int, ...]] | None) -> dict[str, Tensor]:
    """Of a safetensors file; with `expected`, ValueError unless it has just these shapes by key."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: key {name!r} holds NaN or infinity")
    for name, shape in (expected or {}).items():
        if name not in tensors:
            raise ValueError(f"{path}: key {name!r} is missing")
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{path}: key {name!r} has shape {tuple(tensors[name].shape)}, the model has "
                f"{shape}; resume with the world_model settings of the run that saved it"
            )
    unknown = sorted(tensors.keys() - expected.keys()) if expected is not None else []
    if unknown:
        raise ValueError(f"{path}: key {unknown[0]!r} is not a parameter of the model")
    return tensors


def _check_moments(path: Path, moments: dict[str, Tensor], model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    for key, value in moments.items():
        name = key.rpartition("/")[0]
        if name not in parameters:
            raise ValueError(f"{path}: key {key!r} belongs to no parameter of the model")
        if value.ndim > 0 and value.shape != parameters[name].shape:
            raise ValueError(
                f"{path}: key {key!r} has shape {tuple(value.shape)}, its parameter has "
                f"{tuple(parameters[name].shape)}"
            )


def read_counters(path: Path) -> LearnerCounters:
    """Of learner.json. Raises ValueError naming the key that is missing or wrong."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object")
    found.setdefault("watched", {})  # checkpoints from before it was
    for name in (entry.name for entry in fields(LearnerCounters)):
        if name not in found:
            raise ValueError(f"{path}: key {name!r} is missing")
    for name in ("updates", "skipped", "version_offset"):
        if type(found[name]) is not int or not 0 <= found[name] < 2**31:
            raise ValueError(f"{path}: key {name!r} must be a whole number in 0..{2**31 - 1}")
    watched = found["watched"]
    if not isinstance(watched, dict) or not all(
        type(value) in (int, float) and abs(value) < 1e300 for value in watched.values()
    ):
        raise ValueError(f"{path}: key 'watched' must hold finite numbers by name")
    try:
        np.random.default_rng().bit_generator.state = found["rng_state"]
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{path}: key 'rng_state' is no state of a generator") from error
    return LearnerCounters(**{entry.name: found[entry.name] for entry in fields(LearnerCounters)})
