"""The folder of one run: who may use it, what it goes on from, and what is written at its end."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from launch.config import Config, ConfigError, to_dict
from launch.control.checkpoint import CheckpointError, CheckpointStore, verify

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
RUNS_ROOT = Path("runs")

# Settings that may change between a run and its continuation: they alter pace, length or
# observation of a run, never what its data and weights mean.
SAFE_TO_CHANGE = (
    "total_env_steps",
    "run_dir",
    "resume",
    "address",
    "runtime",
    "device",
    "acting.",
    "control.",
    "evaluation.",
    "language.",
    "learner.",
    "limiter.",
    "prior.",
    "reanalysis.",
    "replay.device",
    "replay.engine",
    "search.",
)


class RunDirectory:
    """Made or re-opened by the driver before anything is started; holds a lock until closed."""

    def __init__(self, path: Path, config: Config, lock: int, resume_from: Path | None) -> None:
        self.path = path
        self.resume_from = resume_from
        self.checkpoints = CheckpointStore(path / "checkpoints", config.control.keep_checkpoints)
        self._lock = lock

    @property
    def resumed_at_step(self) -> int | None:
        """Env steps of the checkpoint gone on from, None at a new start."""
        if self.resume_from is None:
            return None
        return int(verify(self.resume_from)["progress"]["env_steps"])

    def write_summary(self, summary: dict[str, object]) -> None:
        temporary = self.path / f".{SUMMARY_FILE}"
        temporary.write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, self.path / SUMMARY_FILE)

    def close(self) -> None:
        os.close(self._lock)


def open_run(preset: str, config: Config) -> RunDirectory:
    """Chooses, checks and locks the run directory. Nothing is written before every check passed.

    Raises ConfigError when the directory can't be written, is in use, holds a run that must not
    be continued, or was made with settings that differ in more than SAFE_TO_CHANGE.
    """
    path = run_path(preset, config)
    resume_from = _resume_source(path, config)
    if resume_from is not None and (path / CONFIG_FILE).is_file():
        _refuse_differences(path, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise ConfigError(
            f"run_dir {path} can't be written: {error.strerror}; choose another with --run-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"run_dir {path} is in use by another run; wait for it or choose another --run-dir"
        ) from error
    temporary = path / f".{CONFIG_FILE}"
    temporary.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    os.replace(temporary, path / CONFIG_FILE)
    (path / SUMMARY_FILE).unlink(missing_ok=True)
    return RunDirectory(path, config, lock, resume_from)


def run_path(preset: str, config: Config) -> Path:
    """Where the run of these settings lives, or would."""
    return config.run_dir if config.run_dir is not None else _default_path(preset, config)


def is_finished(path: Path) -> bool:
    try:
        return bool(json.loads((path / SUMMARY_FILE).read_text())["finished"])
    except (OSError, ValueError, KeyError):
        return False


def _default_path(preset: str, config: Config) -> Path:
    """runs/<preset>; the first free or unfinished of runs/<preset>-2, -3, ..."""
    for path in _candidates(RUNS_ROOT / preset):
        if not path.exists():
            return path
        if config.resume == "never" or is_finished(path):
            continue
        if (path / CONFIG_FILE).is_file() and _differences(path, config):
            continue
        return path
    raise AssertionError("unreachable: the candidates never end")


def _candidates(base: Path) -> Iterator[Path]:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def _resume_source(path: Path, config: Config) -> Path | None:
    if config.resume not in ("auto", "must", "never"):
        chosen = Path(config.resume)
        try:
            verify(chosen)
        except CheckpointError as error:
            raise ConfigError(
                f"resume {config.resume!r} is not auto, must, never or a checkpoint folder: {error}"
            ) from error
        return chosen
    if config.resume == "never":
        if (path / CONFIG_FILE).exists():
            raise ConfigError(
                f"run_dir {path} already holds a run and resume is 'never'; "
                "choose another --run-dir, or --resume auto to go on with it"
            )
        return None
    latest = CheckpointStore(path / "checkpoints", config.control.keep_checkpoints).latest()
    if latest is None and config.resume == "must":
        raise ConfigError(
            f"resume is 'must' but {path} has no usable checkpoint; "
            "check --run-dir or use --resume auto"
        )
    return latest


def _refuse_differences(path: Path, config: Config) -> None:
    differences = _differences(path, config)
    if differences:
        raise ConfigError(
            f"{path} was trained with other settings:\n  "
            + "\n  ".join(differences)
            + "\ngive the same settings to go on, or choose another --run-dir"
        )


def _differences(path: Path, config: Config) -> list[str]:
    old = _flatten(yaml.safe_load((path / CONFIG_FILE).read_text()) or {})
    new = _flatten(to_dict(config))
    return [
        f"{key}: {old.get(key, 'absent')!r} in the run, {new.get(key, 'absent')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(SAFE_TO_CHANGE)
    ]


def _flatten(node: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
