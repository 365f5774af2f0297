"""Game worlds: Super Mario Bros, text worlds, and any Gymnasium game with discrete actions.

Importing this package registers `WarpZone/Mario-v0`, `WarpZone/TextWorld-v0` and
`WarpZone/Jericho-v0` with Gymnasium.
"""

import gymnasium

from actors.envs.config import JERICHO_ID, MARIO_ID, TEXTWORLD_ID, EnvConfig
from actors.envs.framing import Frame
from actors.envs.game import Game, game_spec, make_game

if MARIO_ID not in gymnasium.registry:
    gymnasium.register(id=MARIO_ID, entry_point="actors.envs.mario_env:MarioEnv")
if TEXTWORLD_ID not in gymnasium.registry:
    gymnasium.register(id=TEXTWORLD_ID, entry_point="actors.envs.textworld_env:TextWorldEnv")
if JERICHO_ID not in gymnasium.registry:
    gymnasium.register(id=JERICHO_ID, entry_point="actors.envs.jericho_env:JerichoEnv")

__all__ = [
    "JERICHO_ID",
    "MARIO_ID",
    "TEXTWORLD_ID",
    "EnvConfig",
    "Frame",
    "Game",
    "game_spec",
    "make_game",
]
