"""States with the action that somebody who knows the game takes: what a warm start learns from."""

from actors.demonstrations.planning import Planned, plan_episodes
from actors.demonstrations.textworld import solve_games

__all__ = ["Planned", "plan_episodes", "solve_games"]
