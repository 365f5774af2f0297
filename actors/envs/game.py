"""One face for every Gymnasium game with discrete actions: single frames in channel-first order.

Each game belongs to one thread of one actor and is created there. The adapter owns seeding, the
order of image axes and the numbering of actions; rewards pass as the environment gives them.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import gymnasium
import numpy as np
from numpy.typing import NDArray

from actors.envs.config import EnvConfig
from actors.envs.construction import make_env
from actors.envs.framing import Frame, Framing, framing_of
from actors.envs.rom import KNOWN_BODY_SHA256, find_rom
from replay_service.segment import GameSpec

Info = dict[str, object]


@runtime_checkable
class WordyEnv(Protocol):
    """What an environment adds if it has words, levels and a version of its reward."""

    reward_version: int
    rom_hash: str

    def level(self) -> str: ...
    def prompt(self) -> str: ...
    def option_texts(self) -> tuple[str, ...]: ...


@runtime_checkable
class LevelledEnv(Protocol):
    """What an environment adds if a reset may name one of its levels."""

    @property
    def levels(self) -> tuple[str, ...]: ...


@runtime_checkable
class CoarseEnv(Protocol):
    """What an environment adds if it can tell when a state calls for another move."""

    def coarse_key(self) -> str: ...


@runtime_checkable
class SavableEnv(Protocol):
    """What an environment adds if a point of an episode can be kept and returned to."""

    def save_state(self) -> object: ...
    def load_state(self, saved: object) -> tuple[object, Info]: ...


class Game:
    """A running environment as acting sees it; make it with `make_game`."""

    def __init__(self, env: gymnasium.Env, framing: Framing, config: EnvConfig, seed: int) -> None:
        assert isinstance(env.action_space, gymnasium.spaces.Discrete), env.action_space
        self._env, self._framing = env, framing
        self._id = config.id
        self._seed: int | None = seed
        self._first_action = int(env.action_space.start)
        self._legal: NDArray[np.bool_] | None = None
        base = env.unwrapped
        self._words = base if isinstance(base, WordyEnv) else None
        self._coarse = base if isinstance(base, CoarseEnv) else None
        self.spec = _spec(env, framing, config)
        self.reward_version = 1 if self._words is None else self._words.reward_version
        self.rom_hash = "" if self._words is None else self._words.rom_hash

    def reset(self, level: str | None = None, *, seed: int | None = None) -> Frame:
        """Start an episode; the first reset seeds the environment, later ones go on from there.

        level: a stage of a game that has levels, None = the environment draws one
        seed:  of this episode and what follows it; two episodes of one seed begin alike
        """
        if level is not None and self._words is None:
            raise ValueError(
                f"env.id {self._id!r} has no levels, so level {level!r} can't be chosen"
            )
        options = None if level is None else {"stage": level}
        seed = self._seed if seed is None else seed
        observation, info = self._env.reset(seed=seed, options=options)
        self._seed = None
        self._keep_legal(info)
        return self._framing.frame(observation)

    def step(self, action: int) -> tuple[Frame, float, bool, bool, Info]:
        """Actions count from 0 whatever the environment's numbering."""
        if not 0 <= action < self.spec.n_actions:
            raise ValueError(f"action {action} is not one of 0 .. {self.spec.n_actions - 1}")
        observation, reward, terminated, truncated, info = self._env.step(
            int(action) + self._first_action
        )
        self._keep_legal(info)
        frame = self._framing.frame(observation)
        return frame, float(reward), bool(terminated), bool(truncated), info

    def legal(self) -> NDArray[np.bool_] | None:
        """[A] bool of the current state, None if every action is legal."""
        return self._legal

    def prompt(self) -> str | None:
        """The current state as one line of text, None if the game has no words."""
        return None if self._words is None else self._words.prompt()

    def option_texts(self) -> tuple[str, ...]:
        """What each action is called."""
        if self._words is not None:
            return self._words.option_texts()
        return tuple(f"action {action}" for action in range(self.spec.n_actions))

    def coarse_key(self) -> str:
        """A coarse name of the current state, shared by states that mostly call for the same move;
        "" if the environment has none.
        """
        return "" if self._coarse is None else self._coarse.coarse_key()

    def level(self) -> str:
        """The stage being played, "" if the game has one level."""
        return "" if self._words is None else self._words.level()

    def levels(self) -> tuple[str, ...]:
        """The stages that an episode is drawn from, () if there is nothing to choose."""
        base = self._env.unwrapped
        return tuple(base.levels) if isinstance(base, LevelledEnv) else ()

    def save_state(self) -> object:
        """Keep this point of the episode; raises RuntimeError if the game can't."""
        return self._savable().save_state()

    def load_state(self, saved: object) -> Frame:
        """Return to a kept point; legal() is unchanged until the next step."""
        observation, info = self._savable().load_state(saved)
        self._keep_legal(info)
        return self._framing.frame(observation)

    def render(self) -> NDArray[np.uint8] | None:
        """The picture [H, W, 3] uint8, None if the game can't be drawn."""
        if self._env.render_mode is None:
            return None
        picture = self._env.render()
        return np.asarray(picture, dtype=np.uint8)

    def close(self) -> None:
        self._env.close()

    def _savable(self) -> SavableEnv:
        base = self._env.unwrapped
        if not isinstance(base, SavableEnv):
            raise RuntimeError(f"env.id {self._id!r} can't save and load states")
        return base

    def _keep_legal(self, info: Info) -> None:
        mask = info.get("action_mask")
        if mask is None:
            self._legal = None
            return
        legal = np.asarray(mask).astype(bool)
        if legal.shape != (self.spec.n_actions,) or not legal.any():
            raise RuntimeError(
                f"env.id {self._id!r} gave an action_mask of shape {legal.shape} with "
                f"{int(legal.sum())} legal actions, expected shape ({self.spec.n_actions},) and "
                "at least one"
            )
        self._legal = legal


def make_game(config: EnvConfig, seed: int) -> Game:
    """Create the environment; raises ValueError naming the setting if it can't be used here."""
    env = make_env(config)
    return Game(env, framing_of(env, config), config, seed)


def game_spec(config: EnvConfig) -> GameSpec:
    """Shapes and action count, checking the ROM or the environment id on the way.

    Opens and closes the environment once. An episode is started only with an unknown ROM, so that
    one which isn't the game fails here (ValueError) and not later in an actor.
    """
    env = make_env(config)
    try:
        if config.is_mario and find_rom(config.rom).body_sha256 != KNOWN_BODY_SHA256:
            env.reset(seed=0)
        return _spec(env, framing_of(env, config), config)
    finally:
        env.close()


def _spec(env: gymnasium.Env, framing: Framing, config: EnvConfig) -> GameSpec:
    tokenizer = framing.tokenizer
    return GameSpec(
        framing.shape,
        framing.dtype,
        int(env.action_space.n),
        config.frame_stack,
        n_tokens=0 if tokenizer is None else tokenizer.n_tokens,
        text_encoder="" if tokenizer is None else config.text.encoder,
    )
