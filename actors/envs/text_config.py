"""Settings of text worlds, checked without anything installed: `--env.text.*`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.envs.checks import check_choice, check_range

_YES_NO = ("false", "true")
# Kind of game -> its options in the generator's words, with what each may be; the first or lowest
# is the default.
KINDS: dict[str, dict[str, range | tuple[str, ...]]] = {
    "coin_collector": {"level": range(1, 301)},
    "treasure_hunter": {"level": range(1, 31)},
    "simple": {
        "rewards": ("dense", "balanced", "sparse"),
        "goal": ("detailed", "brief", "none"),
        "test": _YES_NO,
    },
    "cooking": {
        "recipe": range(1, 6),
        "take": range(0, 6),
        "go": ("1", "6", "9", "12"),
        "open": _YES_NO,
        "cook": _YES_NO,
        "cut": _YES_NO,
        "drop": _YES_NO,
        "recipe_seed": range(0, 1_000_000),
        "split": ("none", "train", "valid", "test"),
    },
}
LARGEST_SEED = 2**31 - 1
Setting = int | str | bool | None


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A text world and how its texts are read."""

    # TextWorld only: games are generated once and kept on disk
    kind: str = "coin_collector"  # coin_collector, treasure_hunter, simple or cooking
    options: tuple[str, ...] = ()  # of that kind, such as level=5; see docs/text_worlds.md
    seeds: tuple[int, ...] = (0,)  # one game each; an episode draws one
    cache: str | None = None  # folder of the games; None = warpzone in the user's cache folder

    max_commands: int = 1_000  # refuse games whose commands are more; each is an action
    command_limit_s: float = 20.0  # Jericho: kill a game that takes longer to answer
    max_steps: int = 50  # truncate after so many commands
    history: int = 2  # earlier commands with their replies in the observation

    encoder: str = "hashed"  # hashed (from scratch), or a Hugging Face encoder's name or folder
    max_tokens: int = 160  # of an observation; what is longer loses its oldest history

    def __post_init__(self) -> None:
        parse_options(self.kind, self.options, "env.text.")
        check_seeds(self.seeds, "env.text.seeds")
        check_range("env.text.max_commands", self.max_commands, 2, 10_000)
        check_range("env.text.max_steps", self.max_steps, 1, 100_000)
        check_range("env.text.history", self.history, 0, 20)
        check_range("env.text.max_tokens", self.max_tokens, 8, 8_192)
        if not 0.1 <= self.command_limit_s <= 3_600.0:
            raise ValueError(
                "env.text.command_limit_s must lie in [0.1, 3600] seconds, "
                f"got {self.command_limit_s}"
            )
        if not self.encoder:
            raise ValueError(
                "env.text.encoder is empty; use 'hashed' or name a Hugging Face encoder"
            )


def check_seeds(seeds: Sequence[int], field: str) -> None:
    """Raises ValueError unless `seeds` is a non-empty list of different seeds."""
    if not seeds:
        raise ValueError(f"{field} is empty; name at least one seed, for example 0")
    for seed in seeds:
        check_range(field, seed, 0, LARGEST_SEED)
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"{field} names a seed twice: {list(seeds)}; each makes one game")


def parse_options(kind: str, options: Sequence[str], prefix: str = "") -> dict[str, Setting]:
    """All options of `kind` as its generator takes them: those of `options`, and defaults.

    Raises ValueError naming `prefix` with kind or options, the value and what is allowed.
    """
    check_choice(f"{prefix}kind", kind, tuple(KINDS))
    if isinstance(options, str):
        raise ValueError(
            f"{prefix}options must be a list, got the text {options!r}: use [{options!r}]"
        )
    allowed = KINDS[kind]
    chosen = {name: str(choices[0]) for name, choices in allowed.items()}
    for option in options:
        name, equals, value = str(option).partition("=")
        if name not in allowed or not equals:
            raise ValueError(
                f"{prefix}options: {option!r} is not an option of {kind}; write name=value with "
                f"one of {', '.join(allowed)}"
            )
        chosen[name] = value
    settings = {
        name: _setting(f"{prefix}options: {name}", value, allowed[name])
        for name, value in chosen.items()
    }
    if kind == "cooking" and int(str(settings["take"])) > int(str(settings["recipe"])):
        raise ValueError(
            f"{prefix}options: take={settings['take']} is more than recipe={settings['recipe']}, "
            "the number of ingredients; lower the one or raise the other"
        )
    return settings


def _setting(field: str, value: str, allowed: range | tuple[str, ...]) -> Setting:
    if isinstance(allowed, range):
        if not value.isascii() or not value.isdigit() or int(value[:10]) not in allowed:
            raise ValueError(
                f"{field} must be a whole number from {allowed[0]} to {allowed[-1]}, got {value!r}"
            )
        return int(value)
    check_choice(field, value, allowed)
    if allowed == _YES_NO:
        return value == "true"
    if value == "none" and "train" in allowed:
        return None
    return int(value) if value.isdigit() else value
