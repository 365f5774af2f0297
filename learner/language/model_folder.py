"""Which folder on disk a `prior.model` setting means."""

from __future__ import annotations

import re
from pathlib import Path

from learner.language.tiny_llm import ensure_tiny_llm

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def validate_model(model: str | None) -> None:
    """Cheap check at start: loads nothing, asks no network.

    Raises ValueError for a path without a model in it and for what can't be a Hugging Face name.
    """
    if model is None:
        return
    if _is_path(model):
        folder = Path(model).expanduser()
        missing = [
            name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()
        ]
        if missing:
            state = f"has no {' and no '.join(missing)}" if folder.is_dir() else "is not a folder"
            raise ValueError(
                f"prior.model {model!r} {state}; give the folder of a Hugging Face causal language "
                "model, a name such as Qwen/Qwen2.5-0.5B-Instruct, or nothing for the tiny one"
            )
    elif not _HUB_NAME.fullmatch(model):
        raise ValueError(
            f"prior.model {model!r} is neither a folder nor a Hugging Face name; "
            "give ./path/to/folder or owner/name"
        )


def resolve_model(model: str | None) -> Path:
    """The folder with the model's files; builds the tiny one, fetches a named one if it must.

    Raises ValueError when there is no such model or it can't be fetched.
    """
    validate_model(model)
    if model is None:
        return ensure_tiny_llm()
    if _is_path(model):
        return Path(model).expanduser().resolve()
    return _hub_folder(model)


def _is_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).is_dir()


def _hub_folder(name: str) -> Path:
    # Imported here: only named models need it, and env actors start faster without it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError:
        pass  # not fetched before
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"prior.model {name!r} is in no local cache and could not be fetched ({error}); check "
            "the name and the network, or give a folder (a path starts with ./ or /)"
        ) from error
