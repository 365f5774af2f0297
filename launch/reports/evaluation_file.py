"""Where launch/evaluate.py writes: evaluations/NAME.json, and the picture beside it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from actors.evaluation_rows import Row
from launch.config import ConfigError
from launch.monitoring.json_lines import to_json_value
from launch.reports.evaluation_picture import draw_evaluation
from launch.saved_agent import SavedAgent

EVALUATIONS_FOLDER = "evaluations"
LONGEST_STEM = 200  # of a file's name; a file system takes 255 bytes


def folder_of(agent: SavedAgent) -> Path:
    """In the run; beside a checkpoint that lies alone, since its own files are sealed."""
    is_alone = agent.run_dir == agent.checkpoint
    return (agent.run_dir.absolute().parent if is_alone else agent.run_dir) / EVALUATIONS_FOLDER


def check_folder(folder: Path) -> None:
    """Raises ConfigError if nothing can be written there, before anything is played."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file where evaluations would be written; move it away")
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise ConfigError(f"{folder} can't be written; copy the run to where you may write")


def file_stem(checkpoint: str, unusual: Mapping[str, object]) -> str:
    """The checkpoint and every option that is not as usual: another evaluation, another file."""
    parts = [checkpoint]
    for name, value in unusual.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        parts.append("-".join([name.replace("_", "-"), *map(str, values)]))
    whole = "+".join(parts)
    stem = re.sub(r"[^\w.+-]", "_", whole, flags=re.ASCII)
    if len(stem) <= LONGEST_STEM:
        return stem
    return f"{stem[:LONGEST_STEM]}+{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def write(path: Path, content: Mapping[str, object], rows: Sequence[Row], title: str) -> None:
    """JSON, then the picture. Raises OSError that says which could not be written."""
    text = json.dumps(to_json_value(content), indent=1, allow_nan=False) + "\n"
    _put(path, lambda temporary: temporary.write_text(text))
    _put(path.with_suffix(".png"), lambda temporary: draw_evaluation(rows, title, temporary))


def _put(path: Path, fill: Callable[[Path], object]) -> None:
    """Readers see the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(exist_ok=True)
        fill(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
