"""Mario's reward: one point per tile (16 pixels) of new ground, so a stage pays about 200.

Raw pixels would overflow a value head's support, and a large flag bonus would drown the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

REWARD_VERSION = 1  # raise on any change of the numbers below: old replay data teaches the old one

PROGRESS_SCALE = 1 / 16  # per pixel beyond the furthest x of this episode
PROGRESS_CAP_PX = 64  # a pipe can move Mario 1,700 pixels at once; running makes 12 a step
DEATH_REWARD = -2.0
CLEAR_REWARD = 10.0


@dataclass(slots=True)
class EpisodeReward:
    """The furthest x of one episode, which pays each pixel once."""

    start_x: int
    max_x: int = -1

    def __post_init__(self) -> None:
        self.max_x = max(self.max_x, self.start_x)

    def pay(self, x: int, *, is_dead: bool, is_clear: bool) -> tuple[float, int]:
        """(reward, new ground in pixels) of a step that ended at x."""
        progress_px = max(0, x - self.max_x)
        self.max_x += progress_px
        reward = min(progress_px, PROGRESS_CAP_PX) * PROGRESS_SCALE
        return reward + CLEAR_REWARD * is_clear + DEATH_REWARD * is_dead, progress_px

    def copy(self) -> EpisodeReward:
        return replace(self)
