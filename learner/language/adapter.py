"""Published adapters, or models they are merged into, on disk: one new folder per version.

A folder gets its name only when it is complete, and is never written again, but for the mark of a
version that was withdrawn. `check.json` in it holds prompts and the trainer's log-probabilities, by
which an engine sees that it loaded the right weights.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from learner.language.answer_trie import AnswerTrie
from learner.language.prompt import ScoreRequest

KEPT_VERSIONS = 3  # an engine may still serve the one before the newest
WARM_START_VERSION = 0  # what a run begins with, where it is not the bare model; never removed
WEIGHTS_FILE, SETTINGS_FILE = "adapter_model.safetensors", "adapter_config.json"  # peft's names
_FOLDER = re.compile(r"adapter-(\d{6,})")
CHECK_FILE = "check.json"
_WITHDRAWN_FILE = "withdrawn"
LARGEST_CHECK_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Adapter:
    """One published version; versions only grow, across restarts too."""

    version: int
    path: str


@dataclass(frozen=True, slots=True)
class AdapterCheck:
    """Questions with what the trainer answers, by which an engine shows that it loaded the adapter.

    requests: without thoughts, which need not agree between engines
    log_probs: per request [K] float32, full-vocabulary
    """

    requests: tuple[ScoreRequest, ...]
    log_probs: tuple[NDArray[np.float32], ...]

    def write(self, folder: Path) -> None:
        content = {
            "token_ids": [request.token_ids for request in self.requests],
            "answers": [request.answers for request in self.requests],
            "log_probs": [row.tolist() for row in self.log_probs],
        }
        (folder / CHECK_FILE).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> AdapterCheck:
        """Raises ValueError when the folder is gone, has no readable check, or was withdrawn."""
        if (folder / _WITHDRAWN_FILE).exists():
            raise ValueError(f"adapter {folder} was withdrawn: an engine's answers differed")
        path = folder / CHECK_FILE
        try:
            if path.stat().st_size > LARGEST_CHECK_BYTES:
                raise ValueError(f"it has more than {LARGEST_CHECK_BYTES:,} bytes")
            content = json.loads(path.read_text(encoding="utf-8"))
            check = cls(
                tuple(
                    ScoreRequest(tuple(row), tuple(tuple(answer) for answer in answers))
                    for row, answers in zip(content["token_ids"], content["answers"], strict=True)
                ),
                tuple(np.array(row, np.float32) for row in content["log_probs"]),
            )
            check._validate()
            return check
        except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"adapter {folder} has no usable {CHECK_FILE}: {error}") from error

    def _validate(self) -> None:
        if not len(self.requests) == len(self.log_probs) > 0:
            raise ValueError("token_ids, answers and log_probs must be equally many, at least 1")
        for request, scores in zip(self.requests, self.log_probs, strict=True):
            for row in (request.token_ids, *request.answers):
                if not row or not all(type(token) is int and 0 <= token < 2**31 for token in row):
                    raise ValueError("token_ids and answers must hold rows of token numbers")
            n_answers = len(request.answers)
            AnswerTrie(request.answers)  # that they are answers
            if not n_answers or scores.shape != (n_answers,) or not np.isfinite(scores).all():
                raise ValueError("log_probs must hold a finite number for each answer")

    def gap(self, answers: tuple[NDArray[np.float32], ...]) -> float:
        """Largest absolute difference to `answers`; infinite where they are not comparable."""
        gaps = [
            float(np.abs(mine - theirs).max()) if mine.shape == theirs.shape else np.inf
            for mine, theirs in zip(self.log_probs, answers, strict=True)
        ]
        worst = max(gaps, default=np.inf)
        return worst if np.isfinite(worst) else np.inf


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter. Raises ValueError if they can't be read or are not finite."""
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} can't be read: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder / WEIGHTS_FILE}: {name} holds NaN or infinity")
    return tensors


def load_weights(folder: Path, trained: Mapping[str, Tensor]) -> None:
    """Puts an adapter's values into the parameters `trained`, by their names in a peft model.

    Raises ValueError, before anything changes, if it is an adapter of another model or rank.
    """
    saved = read_weights(folder)
    wanted = {name.replace(".default.", "."): p for name, p in trained.items()}
    unmatched = sorted(wanted.keys() ^ saved.keys()) or [
        name for name, p in wanted.items() if p.shape != saved[name].shape
    ]
    if unmatched:
        raise ValueError(
            f"adapter {folder} and this model disagree on {', '.join(unmatched[:3])}; it was made "
            "for another prior.model or language.lora_rank"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])


def holds_whole_model(folder: Path) -> bool:
    """Whether a published folder has all weights of a model, with the adapter merged in."""
    return (folder / "config.json").is_file()


def check_whole_model(folder: Path, base: Path) -> None:
    """Raises ValueError unless `folder` has the tensors of `base`, in their shapes and finite."""
    wanted, found = _shapes(base), _shapes(folder)
    unmatched = sorted(wanted.keys() ^ found.keys())
    if unmatched:
        raise ValueError(f"model {folder} and {base} disagree on {', '.join(unmatched[:5])}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"model {folder}: {name} has shape {found[name]}, expected {shape}")
    try:
        bad = [
            name
            for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()
            if not torch.isfinite(tensor).all()
        ]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model {folder} can't be read: {error}") from error
    if bad:
        raise ValueError(f"model {folder}: {bad[0]} holds NaN or infinity")


def _shapes(folder: Path) -> dict[str, list[int]]:
    """By the name of each tensor in a model's files."""
    shapes = {}
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as content:
                names = content.keys()
                shapes |= {name: content.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model {folder} can't be read: {error}") from error
    return shapes


def adapter_folder(root: Path, version: int) -> Path:
    return root / f"adapter-{version:06d}"


def published_adapters(root: Path) -> list[Adapter]:
    """What is there, oldest first."""
    if not root.is_dir():
        return []
    found = [(m, p) for p in root.iterdir() if (m := _FOLDER.fullmatch(p.name))]
    return sorted((Adapter(int(m[1]), str(p)) for m, p in found), key=lambda a: a.version)


def mark_withdrawn(folder: Path) -> None:
    """From now on no engine takes this version; a folder that is gone can't be taken anyway."""
    with suppress(OSError):
        (folder / _WITHDRAWN_FILE).touch()


def remove_old_adapters(root: Path) -> None:
    for adapter in published_adapters(root)[:-KEPT_VERSIONS]:
        if adapter.version != WARM_START_VERSION:
            shutil.rmtree(adapter.path, ignore_errors=True)
