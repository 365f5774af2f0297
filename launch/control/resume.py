"""What a run goes on from: which checkpoint is chosen, in which order, and what is refused.

The order: the PATH given; the run directory's own checkpoints, the one that LATEST names first,
then by number; and with `must`, those of other runs below the same root. Nothing is started or
written here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from launch.config import Config, ConfigError
from launch.control.checkpoint import (
    COUNTERS,
    MANIFEST,
    METADATA,
    CheckpointError,
    CheckpointStore,
    read_json,
    verify,
)
from launch.control.counters import Counters, checked_counters
from launch.control.metadata import read_metadata
from launch.control.remote_store import RemoteStore, is_uri
from launch.control.run_search import CHECKPOINTS_FOLDER, MOST_ENTRIES, RunSearch, is_in_use
from launch.control.store_driver import StoreError
from launch.control.stored_settings import (
    BOUND_TO_ADAPTER,
    StoredSettings,
    differences,
    is_same_task,
    read_settings_file,
)

CONFIG_FILE = "config.yaml"
RUNS_ROOT = Path("runs")
OWN = "the run directory"
OWN_COPY = "control.checkpoint_uri"
# Settings that replay's content depends on: with others it can't be read, or means something else.
REPLAY_BOUND = ("env.", "targets.", "replay.")


@dataclass(frozen=True, slots=True)
class Resume:
    """A checkpoint to go on from, verified.

    found: where it was found, for people
    counters: of the checkpoint, checked
    origin: the URI that it was fetched from, "" if from none
    relaxed: what does not fit is left out and reported instead of refused
    differences: settings that differ although they should not; () unless relaxed
    """

    folder: Path
    found: str
    counters: Counters
    relaxed: bool = False
    differences: tuple[str, ...] = ()
    origin: str = ""

    @property
    def source(self) -> str:
        """Where it came from, for people."""
        return self.origin or str(self.folder)

    @property
    def env_steps(self) -> int:
        return int(self.counters["progress"]["env_steps"])

    @property
    def incarnations(self) -> dict[int, int]:
        """Of each env actor, so that ids of segments never repeat."""
        return {int(index): int(count) for index, count in self.counters["incarnations"].items()}

    @property
    def is_branch(self) -> bool:
        """What the run begins with is not what its own newest checkpoint holds."""
        return self.relaxed or self.found not in (OWN, OWN_COPY)

    @property
    def keeps_replay(self) -> bool:
        return not any(line.startswith(REPLAY_BOUND) for line in self.differences)

    @property
    def keeps_adapter(self) -> bool:
        """Of the language model, where one was tuned."""
        differs = any(line.startswith(BOUND_TO_ADAPTER) for line in self.differences)
        return (self.folder / "language").is_dir() and not differs


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Checkpoints to go on from that are to be fetched first, the one to try first first."""

    store: RemoteStore
    names: list[str]
    found: str


def choose_source(run_dir: Path, config: Config) -> Resume | Elsewhere | None:
    """The checkpoint that `config.resume` asks for, None to start from nothing.

    Raises ConfigError if there is none but must be, or if its settings differ.
    """
    store = CheckpointStore(run_dir / CHECKPOINTS_FOLDER, config.control.keep_checkpoints)
    if config.resume == "never":
        if (run_dir / CONFIG_FILE).exists() or store.names():
            raise ConfigError(
                f"run_dir {run_dir} already holds a run and resume is 'never'; "
                "choose another --run-dir, or --resume auto to go on with it"
            )
        if find_elsewhere(config.control.checkpoint_uri, OWN_COPY) is not None:
            raise ConfigError(
                f"control.checkpoint_uri {config.control.checkpoint_uri} already holds a run and "
                "resume is 'never'; choose another, or --resume auto to go on with it"
            )
        return None
    if is_uri(config.resume):
        source = find_elsewhere(config.resume, "--resume")
        if source is None:
            raise ConfigError(f"resume {config.resume!r} holds no checkpoint; check the address")
        return _fitting(source, config)
    if is_path(config.resume):
        return checked(_named(config), "--resume", config)
    newest = store.latest()
    if newest is not None:
        return checked(newest, OWN, config)
    source = find_elsewhere(config.control.checkpoint_uri, OWN_COPY)
    if source is not None:
        return _fitting(source, config)
    if store.names():
        raise ConfigError(
            f"none of the {len(store.names())} checkpoints in {run_dir} can be used (see the "
            "warnings above); choose another --run-dir, or remove them to start from nothing"
        )
    return _of_another_run(run_dir, config) if config.resume == "must" else None


def is_path(resume: str) -> bool:
    """Whether this value of the setting `resume` names a checkpoint or a run."""
    return resume not in ("auto", "must", "never")


def would_continue(run_dir: Path, config: Config) -> bool:
    """Whether `config` may go on with what is in `run_dir`; also if that can't be told."""
    if config.resume_relaxed:
        return True
    newest = CheckpointStore(run_dir / CHECKPOINTS_FOLDER, keep=1).newest()
    try:
        if newest is not None:
            return not differences(stored_settings(newest), config)
        if (run_dir / CONFIG_FILE).is_file():
            return not differences(read_settings_file(run_dir / CONFIG_FILE), config)
    except ConfigError:
        pass  # said by `choose_source` where it matters
    return True


def stored_settings(folder: Path, origin: str = "") -> StoredSettings:
    """What the checkpoint `folder` was made with: its own metadata, else its run's config.yaml.

    origin: the URI that it was fetched from, "" if from none; a copy lies in no run of its own.
    Raises ConfigError saying what is missing where neither can be used.
    """
    try:
        return read_metadata(folder).settings
    except CheckpointError as error:
        if (folder / METADATA).exists():
            raise ConfigError(str(error)) from error
    if origin:
        raise ConfigError(
            f"the settings of checkpoint {origin} are lost: it has no {METADATA}; use another, or "
            f"download it to its run's checkpoints/, beside its {CONFIG_FILE}, and go on from there"
        )
    # Checkpoints made before they held metadata.
    config_file = folder.parent.parent / CONFIG_FILE
    try:
        return read_settings_file(config_file)
    except ConfigError as error:
        raise ConfigError(
            f"the settings of checkpoint {folder} are lost: it has no {METADATA}, and {error}; "
            f"put its run's {CONFIG_FILE} back, or use another checkpoint"
        ) from error


def _named(config: Config) -> Path:
    """The checkpoint that `--resume PATH` means: itself, or the newest of a run; verified."""
    path = Path(config.resume)
    of_run = CheckpointStore(path / CHECKPOINTS_FOLDER, config.control.keep_checkpoints)
    try:
        if (path / MANIFEST).exists() or not of_run.names():
            verify(path)
            return path
    except CheckpointError as error:
        raise ConfigError(
            f"resume {config.resume!r} is not auto, must, never, a checkpoint or a run: {error}"
        ) from error
    newest = of_run.latest()
    if newest is None:
        raise ConfigError(f"resume {config.resume!r} is a run without a usable checkpoint")
    return newest


def find_elsewhere(uri: str, found: str) -> Elsewhere | None:
    """What there is below `uri`, a run's or a checkpoint's; None if there is nothing."""
    if not uri:
        return None
    run, _, name = uri.rstrip("/").rpartition(f"/{CHECKPOINTS_FOLDER}/")
    try:
        store = RemoteStore(run if run and "/" not in name else uri)
        names = store.names()
    except StoreError as error:
        raise ConfigError(f"{found}: {error}") from error
    if run and "/" not in name:
        names = [name] if name in names else []
    return Elsewhere(store, names, found) if names else None


def _fitting(source: Elsewhere, config: Config) -> Elsewhere:
    """`source`, unless its first one says that its settings differ: ConfigError then."""
    name = source.names[0]
    with tempfile.TemporaryDirectory() as folder:
        try:
            part = source.store.fetch(name, Path(folder), only=(COUNTERS, METADATA))
        except (CheckpointError, StoreError):
            return source  # passed over, with a warning, when it is fetched
        checked(part, source.found, config, source.store.uri_of(name))
    return source


def checked(folder: Path, found: str, config: Config, origin: str = "") -> Resume:
    """For a checkpoint that was verified."""
    try:
        counters = checked_counters(read_json(folder / COUNTERS), folder / COUNTERS)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    differing = differences(stored_settings(folder, origin), config)
    if differing and not config.resume_relaxed:
        raise ConfigError(_refusal(origin or str(folder), differing))
    return Resume(folder, found, counters, config.resume_relaxed, tuple(differing), origin)


def _refusal(folder: str, differing: list[str]) -> str:
    return (
        f"{folder} was trained with other settings:\n  "
        + "\n  ".join(differing)
        + "\ngive the same settings to go on, choose another --run-dir, or take over what fits "
        "with --resume-relaxed"
    )


def _of_another_run(run_dir: Path, config: Config) -> Resume:
    root = _search_root(run_dir)
    search = RunSearch(root)
    refused: list[str] = []
    for run in search.runs():
        if run.resolve() == run_dir.resolve() or is_in_use(run):
            continue
        try:
            candidate = _candidate(run, config)
            if candidate is not None:
                return checked(candidate, f"a search of {root}", config)
        except ConfigError as error:
            refused.append(str(error))
    bound = "" if search.is_complete else f", as far as {MOST_ENTRIES:,} directory entries reach"
    reasons = f"; nearest: {refused[0]}" if refused else ""
    raise ConfigError(
        f"resume is 'must' but neither {run_dir} nor another run in {root}{bound} has a usable "
        "checkpoint for this environment, action set and model; check --run-dir or use "
        f"--resume auto{reasons}"
    )


def _candidate(run: Path, config: Config) -> Path | None:
    """The newest usable checkpoint of `run` if it is one for this task; cheap where it is not."""
    store = CheckpointStore(run / CHECKPOINTS_FOLDER, config.control.keep_checkpoints)
    newest = store.newest()
    try:
        if newest is not None and not is_same_task(stored_settings(newest), config):
            return None
    except ConfigError:
        return None  # its settings are lost: whether it fits can't be said
    found = store.latest()
    return found if found is not None and is_same_task(stored_settings(found), config) else None


def _search_root(run_dir: Path) -> Path:
    """runs/ for what lies in it, else the folder that the run directory is in."""
    is_below = run_dir.resolve().is_relative_to(RUNS_ROOT.resolve())
    return RUNS_ROOT if is_below else run_dir.parent
