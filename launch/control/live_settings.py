"""The settings that may be changed while a run goes on, and what each of them allows.

They last as long as the process of the run: its settings are in `config.yaml`, and who wants to
keep a change gives it on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from actors.play_settings import PlaySettings
from launch.config import Config
from launch.setting_types import SettingError, shown, typed


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """None follows the run's own settings."""

    temperature: float | None = None
    learning_rate_scale: float = 1.0
    simulations: int | None = None
    paused: bool = False

    @property
    def play(self) -> PlaySettings | None:
        """What env actors are told with every call; None for nothing."""
        if self.temperature is None and self.simulations is None:
            return None
        return PlaySettings(self.temperature, self.simulations)


@dataclass(frozen=True, slots=True)
class Knob:
    """One such setting: `hint` of its values, which lie in [low, high], and what it is for."""

    name: str
    hint: object
    low: float
    high: float
    meaning: str
    own: str = ""  # what null goes back to, in words; "" where null is not allowed

    @property
    def allowed(self) -> str:
        if self.hint is bool:
            return "true or false"
        kind = "a whole number" if self.hint is int else "a number"
        text = f"{kind} in [{self.low:g}, {self.high:g}]"
        return f"{text}, or null for {self.own}" if self.own else text

    def check(self, value: object) -> object:
        """`value` as the setting takes it. Raises SettingError with setting, value, remedy."""
        if value is None and self.own:
            return None
        try:
            taken = typed(self.hint, value)
        except SettingError:
            pass
        else:
            if self.hint is bool or self.low <= taken <= self.high:
                return taken
        raise SettingError(f"{self.name} must be {self.allowed}, got {shown(value)}")


def knobs(config: Config) -> tuple[Knob, ...]:
    """Of a run with these settings. Trees are as large as these say, so searches only shrink.

    Gumbel's search draws no move from its visits, and so has no temperature.
    """
    search = config.search
    temperature = Knob(
        "temperature",
        float,
        0.01,
        10.0,
        "exponent 1/temperature on visit counts while acting; lower is greedier",
        "the run's schedule",
    )
    return (
        *((temperature,) if search.variant == "puct" else ()),
        Knob(
            "simulations",
            int,
            search.leaves_per_call,
            search.n_simulations,
            "visits per search while acting; fewer is faster and weaker. For more than "
            f"{search.n_simulations} start the run with a larger search.n_simulations",
            "search.n_simulations",
        ),
        Knob(
            "learning_rate_scale",
            float,
            0.01,
            10.0,
            "factor on the learning rate of the world model, beside its schedule",
        ),
        Knob("paused", bool, 0, 1, "nobody plays or learns; the run keeps all it has"),
    )


def changed(
    settings: LiveSettings, name: object, value: object, config: Config
) -> tuple[LiveSettings, Knob]:
    """`settings` with one of them changed. Raises SettingError for what is not allowed."""
    for knob in knobs(config):
        if knob.name == name:
            return replace(settings, **{knob.name: knob.check(value)}), knob
    names = ", ".join(knob.name for knob in knobs(config))
    raise SettingError(
        f"{shown(name)} can't be changed while the run goes on; these can: {names}. Stop the run "
        "and give other settings on the command line"
    )


def in_effect(
    settings: LiveSettings, name: str, config: Config, env_steps: int, exploration: float
) -> object:
    """What a setting comes to now, where it follows the run's own too.

    exploration: how far a schedule that adapts has widened it
    """
    value = getattr(settings, name)
    if value is None and name == "temperature":
        scheduled = config.acting.temperature_at(env_steps)
        return PlaySettings(exploration=exploration).temperature_or(scheduled)
    if value is None and name == "simulations":
        return config.search.n_simulations
    return value
