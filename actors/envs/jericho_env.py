"""`WarpZone/Jericho-v0`: classic text adventures from story files that the user owns.

Belongs to one thread; the game runs in a child process. A state that was not met before costs a
search for valid commands, which tries hundreds of them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from actors.envs.checks import check_range
from actors.envs.jericho_story import GameHung, StoryProcess
from actors.envs.text_state import CHARSET, LONGEST_TEXT, Transcript

Info = dict[str, object]

REWARD_VERSION = 1  # the score's difference
_CACHED_STATES = 10_000
_START_TRIES = 3


def place_commands(commands: Sequence[str], n_actions: int) -> dict[int, str]:
    """Action index -> command: by the command's hash, or the next free index where that is taken.

    So a command has one index in nearly every state. Raises ValueError if they are too many.
    """
    if len(commands) > n_actions:
        raise ValueError(
            f"env.text.max_commands is {n_actions}, but a state offers {len(commands)} commands; "
            "raise it: none is left out silently"
        )
    placed: dict[int, str] = {}
    for command in sorted(commands):
        index = home_of(command, n_actions)
        while index in placed:
            index = (index + 1) % n_actions
        placed[index] = command
    return placed


def home_of(command: str, n_actions: int) -> int:
    return zlib.crc32(command.encode()) % n_actions


class JerichoEnv(gymnasium.Env[str, np.int64]):
    """Observation: one line of text; action = index of a command of this state, by its hash.

    info["action_mask"] says which indices have a command, info["admissible_commands"] names them,
    info["displaced"] counts those beside their index. The reward is the score's difference. A game
    that gives no answer in time is killed: the episode is truncated, info["hung"], and the next
    reset starts another.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's name
    render_mode = None

    def __init__(
        self,
        game: str | None = None,
        max_commands: int = 1_000,
        max_steps: int = 50,
        history: int = 2,
        limit_s: float = 20.0,
        commands: Sequence[str] | None = None,
    ) -> None:
        """commands: offered in every state in place of searching, with any story file; for tests.

        Raises ValueError naming env.game if there is no such file or it is not a known game.
        """
        check_range("max_commands", max_commands, 2, 10_000)
        check_range("max_steps", max_steps, 1, 100_000)
        check_range("history", history, 0, 20)
        story = Path(game or "").expanduser().resolve()
        if not game or not story.is_file():
            raise ValueError(
                f"env.game {game!r} is no file; name the story file (.z3 to .z8) of a game that "
                "you own with --env.game PATH"
            )
        self.max_steps, self._given = max_steps, commands
        self._hash = hashlib.sha256(story.read_bytes()).hexdigest()
        self._level = story.name
        self.story = StoryProcess(story, searches=commands is None, limit_s=limit_s)
        self._valid: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._told: dict[str, Any] | None = None
        self._offered: dict[int, str] = {}
        self._n_steps = 0
        self._transcript = Transcript(history)
        self.observation_space = gymnasium.spaces.Text(LONGEST_TEXT, charset=CHARSET)
        self.action_space = gymnasium.spaces.Discrete(max_commands)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[str, Info]:
        """Start an episode, always alike. Raises RuntimeError if the game hangs at its start."""
        super().reset(seed=seed)
        self._n_steps = 0
        self._transcript.clear()
        for _ in range(_START_TRIES):
            try:
                self._told = self.story.ask("reset")
                self._offer()
                return self._describe(), self._info()
            except GameHung as error:
                cause = error
        raise RuntimeError(
            f"the game {self._level} hung {_START_TRIES} times at its start: {cause}"
        )

    def step(self, action: np.int64 | int) -> tuple[str, float, bool, bool, Info]:
        """An index without a command is sent as "wait"."""
        before = self._running()
        if not self.action_space.contains(np.int64(action)):
            raise ValueError(f"action {action} is not one of 0 .. {self.action_space.n - 1}")
        command = self._offered.get(int(action), "wait")
        self._n_steps += 1
        try:
            self._told = self.story.ask("step", command)
            self._offer()
        except GameHung:
            self._told, self._offered = before | {"is_over": True, "won": False}, {}
            return self._describe(), 0.0, False, True, self._info() | {"lost": False, "hung": True}
        self._transcript.add(command, self._told["reply"])
        is_over = bool(self._told["is_over"])
        truncated = not is_over and self._n_steps >= self.max_steps
        reward = float(self._told["score"] - before["score"])
        return self._describe(), reward, is_over, truncated, self._info()

    def close(self) -> None:
        self.story.close()
        self._told = None

    # What acting asks of an environment that has words and levels (actors.envs.game).

    @property
    def reward_version(self) -> int:
        return REWARD_VERSION

    @property
    def rom_hash(self) -> str:
        """SHA-256 of the story file."""
        return self._hash

    def level(self) -> str:
        return self._level

    def prompt(self) -> str:
        """The observation with the oldest history first, since prompts are cut at the beginning."""
        return self._describe(newest_first=False)

    def option_texts(self) -> tuple[str, ...]:
        """The command of each index in this state, "" where there is none."""
        return tuple(self._offered.get(index, "") for index in range(int(self.action_space.n)))

    def _describe(self, *, newest_first: bool = True) -> str:
        told = self._running()
        place, inventory = told["place"] or told["reply"], told["inventory"]
        return self._transcript.describe(place, inventory, None, newest_first=newest_first)

    def _running(self) -> dict[str, Any]:
        if self._told is None:
            raise RuntimeError("no episode is running: call reset() first")
        return self._told

    def _offer(self) -> None:
        """Find the state's commands. Raises GameHung."""
        told = self._running()
        # A game in which nothing changes anything goes on with waiting.
        commands = () if told["is_over"] else self._commands(told["state"]) or ("wait",)
        self._offered = place_commands(commands, int(self.action_space.n))

    def _commands(self, state: str) -> tuple[str, ...]:
        if self._given is not None:
            return tuple(self._given)
        if state not in self._valid:
            self._valid[state] = tuple(sorted(set(self.story.ask("valid")["commands"])))
            if len(self._valid) > _CACHED_STATES:
                self._valid.popitem(last=False)
        self._valid.move_to_end(state)
        return self._valid[state]

    def _info(self) -> Info:
        told, n_actions = self._running(), int(self.action_space.n)
        mask = np.full(n_actions, not self._offered, np.int8)  # after the end nothing is chosen
        mask[list(self._offered)] = 1
        moved = [i for i, command in self._offered.items() if i != home_of(command, n_actions)]
        return {
            "action_mask": mask,
            "admissible_commands": sorted(self._offered.values()),
            "displaced": len(moved),
            "score": int(told["score"]),
            "max_score": int(told["max_score"]),
            "won": bool(told["won"]),
            "lost": bool(told["is_over"] and not told["won"]),
            "hung": False,
            "games_replaced": self.story.n_replaced,
        }
