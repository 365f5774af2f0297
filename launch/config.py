"""The whole configuration of a run: composed here, defined beside the code that it configures.

Order of precedence: defaults in the dataclasses, then a YAML preset, then the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal, get_type_hints

import tyro
import yaml

from actors.acting import ActingConfig
from actors.envs.config import EnvConfig
from actors.evaluation import EvaluationConfig
from actors.prior.config import PriorConfig
from actors.reanalysis import ReanalysisConfig
from actors.search import SearchConfig
from launch.control.adaptive import AdaptiveConfig
from launch.control.config import ControlConfig, PlacementConfig, check_no_password
from launch.control.rate_limiter import RateLimiterConfig
from launch.control.schedule import ScheduleConfig
from launch.dashboard.config import DashboardConfig
from launch.monitoring.config import MonitoringConfig
from launch.setting_types import SettingError, shown, typed
from launch.tracing.config import TraceConfig
from learner.config import LearnerConfig
from learner.language.config import LanguageConfig
from learner.world_model import WorldModelConfig
from replay_service import ReplayConfig, TargetConfig

DEFAULT_PRESET = "mario-quick"
LONGEST_NAME = 200  # of a setting, as shown in messages

# Short names for what people set most; each is exactly the long option beside it.
SHORT_OPTIONS = {
    "--env": "--env.id",
    "--num-actors": "--acting.num-actors",
    "--envs-per-actor": "--acting.envs-per-actor",
    "--simulations": "--search.n-simulations",
    "--max-hours": "--control.max-hours",
    "--auto-memory": "--control.auto-memory",
    "--allow-open-cluster": "--control.allow-open-cluster",
    "--slow-step-trace-threshold": "--trace.slow-step-s",
    "--slow-step-trace-window": "--trace.window-s",
    "--profile": "--trace.profile",
    "--dashboard": "--dashboard.enabled",
}
# May stand alone, which means true.
SWITCHES = (
    "--resume-relaxed",
    "--control.auto-memory",
    "--control.allow-open-cluster",
    "--trace.profile",
    "--dashboard.enabled",
)


@dataclass(frozen=True, slots=True)
class Config:
    """Train an agent that plans."""

    env: EnvConfig = field(default_factory=EnvConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    model: WorldModelConfig = field(default_factory=WorldModelConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    reanalysis: ReanalysisConfig = field(default_factory=ReanalysisConfig)
    limiter: RateLimiterConfig = field(default_factory=RateLimiterConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)

    total_env_steps: int = 10_000  # env steps to collect over all actors before the run ends
    seed: int = 0  # every random stream of the run derives from it
    device: Literal["auto", "cpu", "cuda"] = "auto"  # learner's device; auto takes a GPU if present
    runtime: Literal["ray", "serial"] = "ray"  # ray: processes; serial: one process, bit-exact
    address: str | None = None  # Ray cluster to attach to, e.g. auto; none starts Ray here
    run_dir: Path | None = None  # where the run lives; default runs/<preset or environment>
    # auto: go on if run_dir has a checkpoint; must: or from one of another run that fits, or fail;
    # never; or the PATH of a checkpoint or of a run
    resume: str = "auto"
    resume_relaxed: bool = False  # take over what fits, list the rest in resume-report.json

    def __post_init__(self) -> None:
        if self.total_env_steps < 1:
            raise ValueError(f"total_env_steps must be at least 1, got {self.total_env_steps}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must lie in [0, 2**31), got {self.seed}")
        check_no_password("resume", self.resume)
        if self.control.min_actors > self.acting.num_actors:
            raise ValueError(
                f"control.min_actors must be at most acting.num_actors, {self.acting.num_actors}, "
                f"got {self.control.min_actors}"
            )
        if self.placement.prior_engine_gpus > self.prior.num_engines:
            raise ValueError(
                "placement.prior_engine_gpus must be at most prior.num_engines, "
                f"{self.prior.num_engines}, got {self.placement.prior_engine_gpus}: an engine uses "
                "one GPU or a part of it"
            )
        if self.learner.n_devices > 1 and self.runtime == "serial":
            raise ValueError(
                "learner.n_devices must be 1 with --runtime serial, which is one process, got "
                f"{self.learner.n_devices}; use --runtime ray"
            )


class ConfigError(ValueError):
    """A setting that can't be used; the message names field, value, what is allowed, remedy."""


def preset_names() -> list[str]:
    folder = resources.files("launch.presets")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name[-5:] == ".yaml")


def load_preset(name: str) -> Config:
    """The defaults with a preset laid over them. Raises ConfigError for an unknown one."""
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"preset {name!r} is unknown; there are: {', '.join(preset_names())}{hint}"
        )
    text = resources.files("launch.presets").joinpath(f"{name}.yaml").read_text()
    return overlay(Config(), yaml.safe_load(text) or {}, where=f"preset {name}")


def overlay(config: Config, changes: Mapping[str, object], *, where: str) -> Config:
    """`config` with nested `changes` applied, as read from YAML or JSON.

    Raises ConfigError for an unknown key and for a value of another type or out of range.
    """
    return _overlay(config, changes, where, prefix="")


def _overlay(node, changes: Mapping[str, object], where: str, prefix: str):
    hints = get_type_hints(type(node))
    replaced: dict[str, object] = {}
    for key, value in changes.items():
        path = f"{prefix}{key}"[:LONGEST_NAME]
        if key not in hints:
            near = difflib.get_close_matches(str(key)[:LONGEST_NAME], hints, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"{where}: there is no setting {path!r}{hint}")
        old = getattr(node, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {path} must hold settings, got {shown(value)}")
            replaced[key] = _overlay(old, value, where, prefix=f"{path}.")
            continue
        try:
            replaced[key] = typed(hints[key], value)
        except SettingError as error:
            raise ConfigError(f"{where}: {path} {error}") from error
    try:
        return dataclasses.replace(node, **replaced)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def parse(arguments: Sequence[str]) -> tuple[str, Config]:
    """Preset name and configuration from the command line.

    Exits with code 2 and a one-screen message on a bad setting; `--help` lists every setting.
    """
    words = _complete_switches([_expand(word) for word in arguments])
    preset = _take_preset(words)
    try:
        default = load_preset(preset)
    except ConfigError as error:
        fail(str(error))
    config = tyro.cli(
        Config,
        prog="train.py",
        args=words,
        default=default,
        description=_description(preset),
        config=(tyro.conf.FlagConversionOff,),
    )
    return preset, config


def fail(message: str) -> None:
    """Prints `message` and exits with code 2, the code of everything the user can put right."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def _description(preset: str) -> str:
    short = "\n".join(f"  {name:<18} = {long}" for name, long in SHORT_OPTIONS.items())
    return (
        "Train an agent that plans.\n\n"
        f"--preset NAME picks the defaults shown below (now {preset}); there are: "
        f"{', '.join(preset_names())}.\n\nShort names:\n{short}"
    )


def _expand(word: str) -> str:
    name, equals, value = word.partition("=")
    if word in ("true", "false"):
        return word.capitalize()
    value = value.capitalize() if value in ("true", "false") else value
    return SHORT_OPTIONS.get(name, name) + equals + value


def _complete_switches(words: list[str]) -> list[str]:
    """Puts True behind each of SWITCHES that stands alone."""
    complete = []
    for index, word in enumerate(words):
        complete.append(word)
        if word in SWITCHES and words[index + 1 : index + 2] not in (["True"], ["False"]):
            complete.append("True")
    return complete


def _take_preset(words: list[str]) -> str:
    """Removes `--preset NAME` from `words` and returns NAME."""
    for index, word in enumerate(words):
        if word.startswith("--preset="):
            return words.pop(index).partition("=")[2]
        if word == "--preset":
            if index + 1 == len(words):
                fail(f"--preset needs a name; there are: {', '.join(preset_names())}")
            del words[index]
            return words.pop(index)
    return DEFAULT_PRESET


def to_dict(config: Config) -> dict[str, object]:
    """Plain nested data for YAML and JSON; paths become strings, tuples lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
