"""`WarpZone/TextWorld-v0`: generated text games as a Gymnasium environment.

Belongs to one thread. A step costs 6 to 25 ms, by the kind of game; most of it is TextWorld's.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from actors.envs.checks import check_range
from actors.envs.text_config import check_seeds, parse_options
from actors.envs.text_state import CHARSET, LONGEST_TEXT, Transcript
from actors.envs.textworld_games import find_games

Info = dict[str, object]

REWARD_VERSION = 1  # the score's difference
_MOST_OPEN = 4  # games held open; the others are opened again when their turn comes


class TextWorldEnv(gymnasium.Env[str, np.int64]):
    """Observation: one line of text; action = index into `commands`, fixed for these games.

    `commands` are all that any state of the games may offer, so that an index means the same
    everywhere; info["action_mask"] says which the state offers, info["admissible_commands"] names
    them. Others may be sent: the game answers that it can't be done. The reward is the score's
    difference; an episode ends won or lost or, truncated, after `max_steps`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's name
    render_mode = None

    def __init__(
        self,
        kind: str = "coin_collector",
        options: Sequence[str] = (),
        seeds: Sequence[int] = (0,),
        cache: str | None = None,
        max_commands: int = 1_000,
        max_steps: int = 50,
        history: int = 2,
        tell_solution: bool = False,
    ) -> None:
        """tell_solution: info["policy_commands"] are commands that win from there; for tests and
        for demonstrations, never in a run.
        """
        parse_options(kind, options)
        check_seeds(tuple(seeds), "seeds")
        check_range("max_commands", max_commands, 2, 10_000)
        check_range("max_steps", max_steps, 1, 100_000)
        check_range("history", history, 0, 20)
        games = find_games(kind, options, seeds, cache)
        self.max_steps, self._tells_solution = max_steps, tell_solution
        self._games = {game.level: game for game in games}
        self.commands = tuple(sorted(set().union(*(game.commands for game in games))))
        if len(self.commands) > max_commands:
            raise ValueError(
                f"env.text.max_commands is {max_commands}, but the games of {kind} with seeds "
                f"{list(seeds)} have {len(self.commands)} different commands; raise it to at least "
                "that, or choose fewer or smaller games: none is left out silently"
            )
        self._index = {command: index for index, command in enumerate(self.commands)}
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._level = ""
        self._state: Any = None
        self._n_steps = 0
        self._transcript = Transcript(history)
        self.observation_space = gymnasium.spaces.Text(LONGEST_TEXT, charset=CHARSET)
        self.action_space = gymnasium.spaces.Discrete(len(self.commands))

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[str, Info]:
        """Start an episode; options={"stage": level} names one of `levels`, else one is drawn."""
        super().reset(seed=seed)
        self._level = self._draw_level(options or {})
        self._state = self._game().reset()
        self._n_steps = 0
        self._transcript.clear()
        return self._describe(), self._info(is_over=False)

    def step(self, action: np.int64 | int) -> tuple[str, float, bool, bool, Info]:
        before = self._running()
        if not self.action_space.contains(np.int64(action)):
            raise ValueError(f"action {action} is not one of 0 .. {len(self.commands) - 1}")
        command = self.commands[int(action)]
        self._state, _, is_over = self._open[self._level].step(command)
        self._n_steps += 1
        self._transcript.add(command, self._state.feedback)
        truncated = not is_over and self._n_steps >= self.max_steps
        reward = float(self._state.score - before.score)
        return self._describe(), reward, bool(is_over), truncated, self._info(bool(is_over))

    def close(self) -> None:
        for game in self._open.values():
            game.close()
        self._open.clear()
        self._state = None

    @property
    def levels(self) -> tuple[str, ...]:
        """What reset's options may name: kind-seed."""
        return tuple(self._games)

    # What acting asks of an environment that has words and levels (actors.envs.game).

    @property
    def reward_version(self) -> int:
        return REWARD_VERSION

    @property
    def rom_hash(self) -> str:
        """Of what the games are generated from: story files hold the day they were made on."""
        made_from = " ".join(game.story.parent.name for game in self._games.values())
        return hashlib.sha256(made_from.encode()).hexdigest()

    def level(self) -> str:
        self._running()
        return self._level

    def prompt(self) -> str:
        """The observation with the oldest history first, since prompts are cut at the beginning."""
        return self._describe(newest_first=False)

    def option_texts(self) -> tuple[str, ...]:
        return self.commands

    def _describe(self, *, newest_first: bool = True) -> str:
        state = self._running()
        return self._transcript.describe(
            state.description, state.inventory, state.objective, newest_first=newest_first
        )

    def _running(self) -> Any:
        if self._state is None:
            raise RuntimeError("no episode is running: call reset() first")
        return self._state

    def _draw_level(self, options: dict[str, object]) -> str:
        if unknown := sorted(set(options) - {"stage"}):
            raise ValueError(f"unknown reset option {unknown[0]!r}; there is 'stage'")
        if "stage" not in options:
            return self.levels[int(self.np_random.integers(len(self.levels)))]
        level = options["stage"]
        if level not in self._games:
            raise ValueError(
                f"options['stage']: unknown level {level!r}; there are {', '.join(self.levels)}"
            )
        return str(level)

    def _game(self) -> Any:
        """TextWorld's environment of the level."""
        if self._level not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[self._level] = self._start(str(self._games[self._level].story))
        self._open.move_to_end(self._level)
        return self._open[self._level]

    def _start(self, story: str) -> Any:
        import textworld

        wanted = textworld.EnvInfos(
            admissible_commands=True,
            description=True,
            inventory=True,
            objective=True,
            feedback=True,
            score=True,
            max_score=True,
            won=True,
            lost=True,
            policy_commands=self._tells_solution,
        )
        with warnings.catch_warnings():
            # The interpreter knows no game's scores but those of its list; TextWorld tells them.
            warnings.filterwarnings("ignore", message=".*is not fully supported")
            game = textworld.start(story, wanted)
        game.seed(0)
        return game

    def _info(self, is_over: bool) -> Info:
        state = self._running()
        offered = [] if is_over else sorted(state.admissible_commands)
        mask = np.full(len(self.commands), is_over, np.int8)  # after the end nothing is chosen
        try:
            mask[[self._index[command] for command in offered]] = 1
        except KeyError as error:
            raise RuntimeError(
                f"the game {self._level} offers {error}, which its list of commands lacks; "
                "remove the game's folder from env.text.cache and report this"
            ) from error
        info: Info = {
            "action_mask": mask,
            "admissible_commands": offered,
            "score": int(state.score),
            "max_score": int(state.max_score),
            "won": bool(state.won),
            "lost": bool(state.lost),
            "stage": self._level,
        }
        if self._tells_solution:
            info["policy_commands"] = list(state.policy_commands or [])
        return info
