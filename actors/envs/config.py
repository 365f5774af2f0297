"""Settings of a game world; a game's own settings are ignored for other ids."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from actors.envs.checks import check_choice, check_range
from actors.envs.text_config import TextConfig

MARIO_ID = "WarpZone/Mario-v0"
TEXTWORLD_ID = "WarpZone/TextWorld-v0"
JERICHO_ID = "WarpZone/Jericho-v0"
ACTION_SETS = ("right_only", "simple", "complex")
SIZES = (64, 84, 96)
COLORS = ("gray", "rgb")
_STAGE = re.compile(r"[1-8]-[1-4]")


def check_stage(stage: str, field: str) -> None:
    """Raises ValueError unless `stage` is one of 1-1 .. 8-4."""
    if not isinstance(stage, str) or not _STAGE.fullmatch(stage):
        raise ValueError(
            f"{field}: unknown stage {stage!r}; allowed are '1-1' to '8-4' (world 1-8, stage 1-4)"
        )


def check_stages(stages: tuple[str, ...], field: str = "env.stages") -> None:
    """Raises ValueError unless `stages` is a non-empty list of stage names."""
    if isinstance(stages, str):
        raise ValueError(
            f"{field} must be a list of stages, got the text {stages!r}: use [{stages!r}]"
        )
    if not stages:
        raise ValueError(f"{field} is empty; name at least one stage, for example '1-1'")
    for stage in stages:
        check_stage(stage, field)


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """Which game is played and how it is shown; on the command line the fields are `--env.*`."""

    id: str = MARIO_ID  # any Gymnasium id with a discrete action space
    frame_stack: int = 1  # frames joined into one observation; more shows motion, costs memory
    size: int = 64  # pixels per side; Mario: 64, 84 or 96, other image games are resized to it
    color: str = "gray"  # gray (1 channel) or rgb (3 channels, 3 times the replay memory)

    # Super Mario Bros only
    stages: tuple[str, ...] = ("1-1",)  # one is drawn per episode
    action_set: str = "simple"  # right_only (5 actions), simple (7) or complex (12)
    frame_skip: int = 4  # emulator frames per action; more is faster and coarser
    noop_max: int = 30  # up to so many idle frames at the start of an episode; 0 = always alike
    stall_steps: int = 150  # truncate after so many steps without new progress
    rom: str | None = None  # path of the ROM; None = the one in gym-super-mario-bros

    game: str | None = None  # Jericho only: path of a story file that you own
    text: TextConfig = field(default_factory=TextConfig)  # text worlds only

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError(f"env.id is empty; name a Gymnasium id, for example {MARIO_ID}")
        check_range("env.frame_stack", self.frame_stack, 1, 16)
        check_choice("env.color", self.color, COLORS)
        check_range("env.size", self.size, 16, 256)
        if self.id == JERICHO_ID and not self.game:
            raise ValueError(
                "env.game is empty; name the story file (.z3 to .z8) of a game that you own with "
                "--env.game PATH"
            )
        if self.is_mario:
            check_choice("env.size", self.size, SIZES)
            check_stages(self.stages)
            check_choice("env.action_set", self.action_set, ACTION_SETS)
            check_range("env.frame_skip", self.frame_skip, 1, 60)
            check_range("env.noop_max", self.noop_max, 0, 200)
            check_range("env.stall_steps", self.stall_steps, 1, 100_000)

    @property
    def is_mario(self) -> bool:
        return self.id == MARIO_ID
