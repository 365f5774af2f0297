"""A warm start on disk: an adapter to begin a run with, and what it was made from and for.

The folder is one that a language learner publishes, with `warm_start.json` beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from learner.language.adapter import (
    CHECK_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    AdapterCheck,
    read_weights,
)
from learner.language.prompt_config import PromptConfig

FORMAT = 1
ABOUT_FILE = "warm_start.json"
MOST_RANK = 512  # that vLLM takes
LARGEST_ABOUT_BYTES = 100_000
_MAKE = "make one with launch/pretrain_prior.py"
_SAMPLED_BYTES = 1_000_000  # at both ends of a weight file
_NAMING_FILES = ("config.json", "tokenizer.json")
_MAY_DIFFER = ("max_tokens",)  # of the prompt: cuts long states, changes no short one


@dataclass(frozen=True, slots=True)
class WarmStart:
    """What `warm_start.json` says.

    model_fingerprint: of the model that it adapts, see `model_fingerprint`
    prompt: the settings that questions were asked with
    source: of the demonstrations, for people
    figures: what came out, by name
    """

    model_fingerprint: str
    lora_rank: int
    lora_alpha: float
    prompt: dict[str, object]
    source: str
    figures: dict[str, float]

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        (folder / ABOUT_FILE).write_text(text + "\n", encoding="utf-8")


def read_warm_start(folder: Path) -> WarmStart:
    """Raises ValueError naming prior.adapter and what is missing or wrong."""
    wanted = (SETTINGS_FILE, WEIGHTS_FILE, CHECK_FILE, ABOUT_FILE)
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        state = f"has no {' and no '.join(missing)}" if folder.is_dir() else "is not a folder"
        raise ValueError(
            f"prior.adapter '{folder}' {state}; {_MAKE}, or to go on with a run that began with "
            "it, put back the run's copy, adapters/adapter-000000"
        )
    path = folder / ABOUT_FILE
    try:
        if path.stat().st_size > LARGEST_ABOUT_BYTES:
            raise ValueError(f"it has more than {LARGEST_ABOUT_BYTES:,} bytes")
        return _parsed(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"prior.adapter '{folder}': {path} can't be used: {error}") from error


def check_warm_start(folder: Path, model: Path, prompt: PromptConfig) -> WarmStart:
    """Whether the adapter in `folder` fits the model and the prompts of a run, and is whole.

    Raises ValueError naming prior.adapter, what differs and the remedy.
    """
    about = read_warm_start(folder)
    if about.model_fingerprint != model_fingerprint(model):
        raise ValueError(
            f"prior.adapter '{folder}' was made for another model than prior.model, which is "
            f"{model} now; give the same --prior.model as to launch/pretrain_prior.py"
        )
    now = asdict(prompt)
    differing = [
        f"{name} was {about.prompt.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if name not in _MAY_DIFFER and about.prompt.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"prior.adapter '{folder}' learnt from other prompts: prior.prompt."
            f"{', '.join(differing)}; give the same --prior.prompt settings as to "
            "launch/pretrain_prior.py"
        )
    try:
        weights = read_weights(folder)
        AdapterCheck.read(folder)
    except ValueError as error:
        raise ValueError(f"prior.adapter: {error}; {_MAKE}") from error
    ranks = {tensor.shape[0] for name, tensor in weights.items() if ".lora_A." in name}
    if ranks != {about.lora_rank}:
        raise ValueError(
            f"prior.adapter '{folder}' says it has rank {about.lora_rank}, but {WEIGHTS_FILE} "
            f"holds rank {' and '.join(map(str, sorted(ranks))) or 'nothing'}; {_MAKE}"
        )
    return about


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over a model's settings, its tokenizer, and the sizes and ends of its weight files.

    Not over all weights, which may be many GB: tuned copies of a model differ at the ends, too.
    """
    digest = hashlib.sha256()
    for name in _NAMING_FILES:
        digest.update((folder / name).read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        n_bytes = file.stat().st_size
        digest.update(f"{file.name} {n_bytes}".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLED_BYTES))
            content.seek(max(n_bytes - _SAMPLED_BYTES, 0))
            digest.update(content.read(_SAMPLED_BYTES))
    return digest.hexdigest()


def _parsed(content: object) -> WarmStart:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ValueError(f"it is no object of format {FORMAT}")
    values = {name: value for name, value in content.items() if name != "format"}
    names = {field.name for field in fields(WarmStart)}
    if values.keys() != names:
        raise ValueError(f"missing or unknown: {', '.join(sorted(names ^ values.keys()))[:200]}")
    about = WarmStart(**values)
    if type(about.lora_rank) is not int or not 1 <= about.lora_rank <= MOST_RANK:
        raise ValueError(f"lora_rank must be a whole number from 1 to {MOST_RANK}")
    if type(about.lora_alpha) not in (int, float) or not 0 < about.lora_alpha < float("inf"):
        raise ValueError("lora_alpha must be a positive number")
    if not isinstance(about.prompt, dict) or not isinstance(about.figures, dict):
        raise ValueError("prompt and figures must be objects")
    if not isinstance(about.model_fingerprint, str) or not isinstance(about.source, str):
        raise ValueError("model_fingerprint and source must be texts")
    return about
