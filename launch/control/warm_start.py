"""The adapter that a run's language model begins with: checked, then copied into the run.

The run keeps its own copy as version 0 of its adapters: engines and the language learner find it
there whenever they start, whatever becomes of the original.
"""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from launch.config import Config, ConfigError
from learner.language.adapter import WARM_START_VERSION, WEIGHTS_FILE, adapter_folder
from learner.language.warm_start import check_warm_start, read_warm_start

ADAPTERS_FOLDER = "adapters"  # in the run directory


def check_warm_start_of(config: Config, model: Path) -> None:
    """Raises ValueError unless `prior.adapter`, where one is named, fits the run's settings."""
    if config.prior.adapter is None:
        return
    about = check_warm_start(Path(config.prior.adapter), model, config.prior.prompt)
    language = config.language
    if not language.enabled:
        return
    if language.publish == "full":
        raise ValueError(
            "language.publish=full makes engines that take no adapters, but prior.adapter is one; "
            "use --language.publish adapter"
        )
    for name, made in (("lora_rank", about.lora_rank), ("lora_alpha", about.lora_alpha)):
        if getattr(language, name) != made:
            option = f"--language.{name.replace('_', '-')}"
            raise ValueError(
                f"language.{name}={getattr(language, name)}, but prior.adapter "
                f"{config.prior.adapter!r} was made with {made}; give {option} {made}"
            )


def served_rank(config: Config) -> int:
    """Largest rank of adapters that the engine is to take, 0 for none."""
    if config.language.enabled:
        return config.language.lora_rank if config.language.publish == "adapter" else 0
    adapter = config.prior.adapter
    return 0 if adapter is None else read_warm_start(Path(adapter)).lora_rank


def place_warm_start(config: Config, run_dir: Path, *, goes_on: bool) -> None:
    """Copies `prior.adapter` into the run, in place of what it may have begun with before.

    goes_on: with what it had, not only with what fits

    Raises ConfigError if the run has begun with another one and tunes it further.
    """
    adapter = config.prior.adapter if config.prior.enabled else None
    place = adapter_folder(run_dir / ADAPTERS_FOLDER, WARM_START_VERSION)
    if adapter is None:
        shutil.rmtree(place, ignore_errors=True)
        return
    if place.is_dir():
        if filecmp.cmp(place / WEIGHTS_FILE, Path(adapter) / WEIGHTS_FILE, shallow=False):
            return
        if config.language.enabled and goes_on:
            raise ConfigError(
                f"prior.adapter {adapter!r} has changed since {run_dir} began with it; put the "
                f"old one back (the run's copy is {place}), or begin another run"
            )
        shutil.rmtree(place)
    copying = place.with_name(f".new-{place.name}")
    shutil.rmtree(copying, ignore_errors=True)
    try:
        shutil.copytree(adapter, copying)
        copying.rename(place)
    except OSError as error:
        raise ConfigError(
            f"prior.adapter {adapter!r} can't be copied into {run_dir}: {error}"
        ) from error
