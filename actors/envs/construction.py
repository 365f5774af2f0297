"""Creates the environment a config names; every way this can fail becomes a clear ValueError."""

from __future__ import annotations

import difflib
import importlib

import gymnasium
from gymnasium.envs.registration import load_env_creator

from actors.envs.config import JERICHO_ID, MARIO_ID, TEXTWORLD_ID, EnvConfig
from actors.envs.text_config import TextConfig


def make_env(config: EnvConfig) -> gymnasium.Env:
    """The environment with Discrete actions; it draws pictures where it can.

    Raises ValueError naming env.id for an unknown or unusable environment, env.rom for a bad ROM.
    """
    try:
        spec = _registered(config.id)
        settings = _own_settings(config)
        if _draws(spec):
            settings["render_mode"] = "rgb_array"
        # The passive checker costs time at each step and only warns.
        env = gymnasium.make(config.id, disable_env_checker=True, **settings)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(_explain(config.id, error)) from error
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        space = env.action_space
        env.close()
        raise ValueError(
            f"env.id {config.id!r} has the action space {space}; search needs discrete actions, "
            "so choose an environment with a Discrete action space, such as CartPole-v1"
        )
    return env


def _registered(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    module, colon, name = env_id.partition(":")
    if colon:
        importlib.import_module(module)
    return gymnasium.spec(name if colon else env_id)


def _draws(spec: gymnasium.envs.registration.EnvSpec) -> bool:
    entry_point = spec.entry_point
    if entry_point is None:
        return False
    creator = entry_point if callable(entry_point) else load_env_creator(entry_point)
    return "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ())


def _own_settings(config: EnvConfig) -> dict[str, object]:
    if config.id == MARIO_ID:
        return _mario_settings(config)
    if config.id == TEXTWORLD_ID:
        return textworld_settings(config.text)
    return _jericho_settings(config) if config.id == JERICHO_ID else {}


def textworld_settings(config: TextConfig) -> dict[str, object]:
    """What TextWorldEnv takes."""
    return {
        "kind": config.kind,
        "options": config.options,
        "seeds": config.seeds,
        "cache": config.cache,
        "max_commands": config.max_commands,
        "max_steps": config.max_steps,
        "history": config.history,
    }


def _jericho_settings(config: EnvConfig) -> dict[str, object]:
    return {
        "game": config.game,
        "max_commands": config.text.max_commands,
        "max_steps": config.text.max_steps,
        "history": config.text.history,
        "limit_s": config.text.command_limit_s,
    }


def _mario_settings(config: EnvConfig) -> dict[str, object]:
    return {
        "stages": config.stages,
        "action_set": config.action_set,
        "frame_skip": config.frame_skip,
        "size": config.size,
        "color": config.color,
        "noop_max": config.noop_max,
        "stall_steps": config.stall_steps,
        "rom": config.rom,
    }


def _explain(env_id: str, error: Exception) -> str:
    if isinstance(error, gymnasium.error.UnregisteredEnv):
        near = difflib.get_close_matches(env_id, list(gymnasium.registry), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        return (
            f"env.id {env_id!r} is not a registered Gymnasium environment; {hint}Use {MARIO_ID}, "
            "CartPole-v1, or 'module:Id' where importing the module registers the environment"
        )
    return (
        f"env.id {env_id!r} can't be created here: {error}; install what it asks for or choose "
        f"another environment, such as {MARIO_ID} or CartPole-v1"
    )
