"""The transformer world model that search plans in and the learner trains."""

from learner.world_model.config import WorldModelConfig
from learner.world_model.world_model import ModelOutput, WorldModel

__all__ = ["ModelOutput", "WorldModel", "WorldModelConfig"]
