"""The vision side of a model: a tower that reads tiles of pictures, and what carries its features to the decoder."""

from leyden.model.vision.config import RELEASED_PINPOINTS, VisionConfig
from leyden.model.vision.encoder import Pictures, VisionEncoder
from leyden.model.vision.tower import VisionTower, resized_positions

__all__ = ["RELEASED_PINPOINTS", "Pictures", "VisionConfig", "VisionEncoder", "VisionTower", "resized_positions"]
