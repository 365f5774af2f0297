"""`WarpZone/Mario-v0`: Super Mario Bros as a Gymnasium environment with one life per episode.

Belongs to one thread. A step costs frame_skip emulated frames (about 1.7 ms each) and 0.2 ms more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
from numpy.typing import NDArray

from actors.envs import mario_text
from actors.envs.checks import check_choice, check_range
from actors.envs.config import ACTION_SETS, COLORS, SIZES, check_stage, check_stages
from actors.envs.emulator import nes_py_folder
from actors.envs.mario_actions import button_bytes
from actors.envs.mario_console import ConsoleState, MarioConsole
from actors.envs.mario_ram import MarioState, read_state, read_tiles
from actors.envs.mario_reward import REWARD_VERSION, EpisodeReward
from actors.envs.rom import find_rom
from actors.envs.screen import ScreenShrinker, to_rgb

Info = dict[str, object]


@dataclass(frozen=True, slots=True)
class SavedGame:
    """A point in an episode, made by MarioEnv.save_state; plain data that can be pickled."""

    console: ConsoleState
    reward: EpisodeReward
    n_stalled: int
    observation: NDArray[np.uint8]


class MarioEnv(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """Observation [size, size, 1 or 3] uint8; action = index into the action set.

    The episode ends by death, by the flag (or another way out of the stage) or, truncated, after
    `stall_steps` without progress. `info` holds what memory says: see `_info`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 - Gymnasium's name

    def __init__(
        self,
        stages: Sequence[str] = ("1-1",),
        action_set: str = "simple",
        frame_skip: int = 4,
        size: int = 64,
        color: str = "gray",
        noop_max: int = 30,
        stall_steps: int = 150,
        rom: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_stages(stages if isinstance(stages, str) else tuple(stages), "stages")
        check_choice("action_set", action_set, ACTION_SETS)
        check_choice("size", size, SIZES)
        check_choice("color", color, COLORS)
        check_choice("render_mode", render_mode, (None, "rgb_array"))
        check_range("frame_skip", frame_skip, 1, 60)
        check_range("noop_max", noop_max, 0, 200)
        check_range("stall_steps", stall_steps, 1, 100_000)
        self.stages = tuple(stages)
        self.action_set, self.frame_skip, self.noop_max = action_set, frame_skip, noop_max
        self.stall_steps, self.render_mode = stall_steps, render_mode
        nes_py_folder()  # a missing emulator is reported here, not at the first reset
        self.rom = find_rom(rom)
        self._buttons = button_bytes(action_set)
        self._consoles: dict[str, MarioConsole] = {}  # one per stage, 0.5 MB each
        self._console: MarioConsole | None = None
        self._shrink = ScreenShrinker(size, color)
        self._observation = np.zeros(self._shrink.shape, dtype=np.uint8)
        self._reward = EpisodeReward(start_x=0)
        self._n_stalled = 0
        self.observation_space = gymnasium.spaces.Box(0, 255, self._shrink.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._buttons))

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[NDArray[np.uint8], Info]:
        """Start an episode; options={"stage": "1-2"} names the stage, else one is drawn."""
        super().reset(seed=seed)
        stage = self._draw_stage(options or {})
        if stage not in self._consoles:
            self._consoles[stage] = MarioConsole(self.rom, stage)
        self._console = self._consoles[stage]
        self._console.restart()
        n_noops = int(self.np_random.integers(self.noop_max + 1))
        for _ in range(n_noops):
            self._console.run(0, 1)
        state = read_state(self._console.ram)
        self._reward = EpisodeReward(start_x=state.x)
        self._n_stalled = 0
        return self._observe(), self._info(state)

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.uint8], float, bool, bool, Info]:
        console = self._running()
        if not self.action_space.contains(np.int64(action)):
            raise ValueError(f"action {action} is not one of 0 .. {len(self._buttons) - 1}")
        console.run(self._buttons[int(action)], self.frame_skip)
        state = read_state(console.ram)
        has_left = state.is_flag or state.stage != console.stage
        reward, progress_px = self._reward.pay(state.x, is_dead=state.is_dead, is_clear=has_left)
        self._n_stalled = 0 if progress_px else self._n_stalled + 1
        terminated = state.is_dead or has_left
        truncated = not terminated and self._n_stalled >= self.stall_steps
        return self._observe(), reward, terminated, truncated, self._info(state)

    def save_state(self) -> SavedGame:
        """Keep this point of the episode; the random generator is not part of it."""
        console = self._running()
        return SavedGame(
            console.save(), self._reward.copy(), self._n_stalled, self._observation.copy()
        )

    def load_state(self, saved: SavedGame) -> tuple[NDArray[np.uint8], Info]:
        """Go back to a saved point, also of another episode, env or process with the same ROM.

        nes-py 8.2.1 keeps one snapshot per stage: the newest save loads in microseconds, an older
        or foreign one by replaying its buttons from the stage's start, exactly, at 1.7 ms a frame.
        nes-py 9 keeps all snapshots made in this env.
        """
        stage = saved.console.stage
        if stage not in self._consoles:
            self._consoles[stage] = MarioConsole(self.rom, stage)
        self._console = self._consoles[stage]
        self._console.load(saved.console)
        self._reward, self._n_stalled = saved.reward.copy(), saved.n_stalled
        self._observation = saved.observation.copy()
        return self._observation, self._info(read_state(self._console.ram))

    def render(self) -> NDArray[np.uint8] | None:
        """The newest frame [240, 256, 3] uint8; None unless render_mode is rgb_array."""
        return to_rgb(self._running().screen) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        for console in self._consoles.values():
            console.close()
        self._consoles.clear()
        self._console = None

    @property
    def levels(self) -> tuple[str, ...]:
        """The stages that an episode is drawn from; reset's options may name others too."""
        return self.stages

    # What acting asks of an environment that has words and levels (actors.envs.game).

    @property
    def reward_version(self) -> int:
        return REWARD_VERSION

    @property
    def rom_hash(self) -> str:
        return self.rom.body_sha256

    def level(self) -> str:
        return self._running().stage

    def prompt(self) -> str:
        """The state as one line of text."""
        ram = self._running().ram
        state = read_state(ram)
        return mario_text.describe(state, read_tiles(ram, state.x))

    def coarse_key(self) -> str:
        """Changes when another move is likely to be right: a pit, a wall or an enemy comes near."""
        ram = self._running().ram
        state = read_state(ram)
        return mario_text.state_key(state, read_tiles(ram, state.x))

    def option_texts(self) -> tuple[str, ...]:
        return mario_text.action_phrases(self.action_set)

    def _running(self) -> MarioConsole:
        if self._console is None:
            raise RuntimeError("no episode is running: call reset() first")
        return self._console

    def _draw_stage(self, options: dict[str, object]) -> str:
        if unknown := sorted(set(options) - {"stage"}):
            raise ValueError(f"unknown reset option {unknown[0]!r}; there is 'stage'")
        if "stage" in options:
            stage = options["stage"]
            check_stage(stage, "options['stage']")
            return str(stage)
        return self.stages[int(self.np_random.integers(len(self.stages)))]

    def _observe(self) -> NDArray[np.uint8]:
        console = self._running()
        self._observation = self._shrink(console.previous_screen, console.screen)
        return self._observation

    def _info(self, state: MarioState) -> Info:
        """Plain Python values, but for `tiles` [13, 16] uint8; speeds in 1/16 pixel per frame."""
        return {
            "x_pos": state.x,
            "y_pos": state.y,
            "max_x": self._reward.max_x,
            "speed": state.speed_x,
            "power": state.power,
            "enemies": state.enemies,
            "tiles": read_tiles(self._running().ram, state.x),
            "time": state.time,
            "score": state.score,
            "coins": state.coins,
            "stage": state.stage,
            "flag": state.is_flag,
            "death": state.is_dead,
            "stall": self._n_stalled >= self.stall_steps,
        }
