"""Everything that can be known to be wrong before anything is started or written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from actors.envs.game import game_spec
from actors.search.contexts import pool_sizes
from launch.config import Config, ConfigError
from launch.control.fleet import search_seats
from launch.control.ground import Ground, check_ground, device_on, this_machine
from launch.control.pacing import make_limiter
from launch.control.remote_store import RemoteStore
from launch.control.store_driver import StoreError
from launch.control.warm_start import check_warm_start_of
from launch.monitoring.config import check_trackers
from learner.language.losses import NEEDS_ADVANTAGES
from learner.language.model_folder import resolve_model
from learner.language.prompt_config import read_examples
from replay_service import GameSpec, check_capacity


def say(console: Console, text: str) -> None:
    """One `[train]` line, whole however narrow the terminal is."""
    console.print(f"[train] {text}", markup=False, highlight=False, soft_wrap=True)


def preflight(config: Config, console: Console) -> tuple[GameSpec, str]:
    """The game's shapes and the learner's device. Raises ConfigError with field and remedy."""
    try:
        spec = game_spec(config.env)
        check_capacity(
            config.replay,
            config.targets,
            spec,
            config.learner.batch_size,
            segment_steps=config.acting.segment_length,
        )
        _check_search(config)
        make_limiter(config)
        check_trackers(config.monitoring)
        if config.prior.enabled:
            # Built or found here once, so that no child has to.
            check_warm_start_of(config, resolve_model(config.prior.model))
            if config.prior.prompt.examples is not None:
                read_examples(Path(config.prior.prompt.examples))
            if config.language.enabled:
                _check_advantages(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.replay.min_positions > config.total_env_steps:
        raise ConfigError(
            f"replay.min_positions={config.replay.min_positions} can't be reached with "
            f"total_env_steps={config.total_env_steps}: learning would never start; "
            "lower the one or raise the other"
        )
    device = _check_machines(config, console)
    if config.run_dir is not None:
        check_writable(config.run_dir)
    if config.control.checkpoint_uri:
        try:
            RemoteStore(config.control.checkpoint_uri).check_writable()
        except StoreError as error:
            raise ConfigError(f"control.checkpoint_uri: {error}") from error
    return spec, device


def _check_machines(config: Config, console: Console) -> str:
    """Says what there is and what the run asks for; returns the learner's device."""
    say_it = partial(say, console)
    ground = None
    if config.runtime == "ray":
        ground = _cluster_to_join(config, say_it)
    if ground is None:
        device, ground = choose_device(config.device, console), this_machine()
    else:
        device = device_on(ground, config.device, say_it)
    if config.runtime == "ray":
        check_ground(config, device, ground, say_it)
    return device


def _cluster_to_join(config: Config, say_it: Callable[[str], None]) -> Ground | None:
    """None if the run starts Ray here. Ray is imported only where it is used."""
    from launch.control.cluster_check import check_cluster
    from launch.control.cluster_look import look_at
    from launch.control.ray_runtime import address_to_join

    address = address_to_join(config.address)
    if address is None:
        return None
    return look_at(
        check_cluster(address, allow_open=config.control.allow_open_cluster, warn=say_it)
    )


def _check_advantages(config: Config) -> None:
    """Some losses learn from what only some replays keep."""
    name = config.language.loss.name
    if name in NEEDS_ADVANTAGES and not config.replay.advantages:
        raise ConfigError(
            f"language.loss.name={name} learns from advantages, but replay.advantages=False does "
            "not keep them; set --replay.advantages true, or --language.loss.name sft"
        )


def _check_search(config: Config) -> None:
    """Pools and batches against the environments that every search will be asked for."""
    search, window_steps = config.search, config.model.window_steps
    seats = search_seats(config)
    if search.mode == "served":
        pool_sizes(search, window_steps, sum(seats))
    else:
        for n_envs in set(seats):
            pool_sizes(search, window_steps, n_envs)
    # Where priors or a service are waited for, env actors search one half of theirs at a time.
    waits = search.mode == "served" or config.prior.enabled
    n_acting = config.acting.envs_per_actor
    n_roots = max(-(-n_acting // 2) if waits else n_acting, seats[-1])
    if 0 < search.max_roots < n_roots:
        raise ConfigError(
            f"search.max_roots={search.max_roots} is too small: one search of "
            f"acting.envs_per_actor={n_acting} or of {seats[-1]} evaluation games has up to "
            f"{n_roots} roots; raise search.max_roots, set it to 0 for no limit, or lower these"
        )


def choose_device(wanted: str, console: Console) -> str:
    """cpu or cuda. `cuda` without a usable GPU is an error, never a silent fall back."""
    if wanted == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                "device 'cuda' was asked for but PyTorch sees no usable GPU "
                f"(torch {torch.__version__}); use --device cpu, or check the driver and install "
                "the GPU requirements with WARPZONE_DEVICE=cuda make setup"
            )
        return "cuda"
    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        say(console, f"device auto: cuda ({torch.cuda.get_device_name()})")
        return "cuda"
    say(console, "device auto: cpu, no GPU found; training will be slow")
    return "cpu"


def check_writable(run_dir: Path) -> None:
    """Raises ConfigError unless files can be made in `run_dir` or where it will be made."""
    folder = run_dir
    while not folder.exists():
        folder = folder.parent
    remedy = "choose another with --run-dir"
    if not folder.is_dir():
        raise ConfigError(f"run_dir {run_dir} can't be made: {folder} is a file; {remedy}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir {run_dir} can't be written: no permission; {remedy}")
    try:  # read-only file systems pass the permission check
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"run_dir {run_dir} can't be written: {error.strerror}; {remedy}"
        ) from error
