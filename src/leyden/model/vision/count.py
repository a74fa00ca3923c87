"""Parameters and operations of the vision side, by arithmetic alone."""

from dataclasses import dataclass

from leyden.model.vision.config import VisionConfig


@dataclass(frozen=True)
class VisionCount:
    """The sizes of a vision side.

    Attributes:
        tower_parameters: all weights of the tower.
        projector_parameters: those of the projector, with the vector that ends a row of a picture.
        float32_parameters: norms of the tower, which are float32 whatever the model's dtype.
        flops_per_tile: of the tower, forward: 2 a weight of a matrix and position, and 4 D a pair of positions.
        flops_per_token: of the projector, for each vector of a picture.
    """

    tower_parameters: int
    projector_parameters: int
    float32_parameters: int
    flops_per_tile: int
    flops_per_token: int

    @property
    def parameters(self) -> int:
        """All weights of the vision side."""
        return self.tower_parameters + self.projector_parameters


def count_vision(config: VisionConfig, hidden_size: int) -> VisionCount:
    """Count the vision side of a decoder of width ``hidden_size`` without building it."""
    width, depth, patches = config.hidden_size, config.num_hidden_layers, config.grid**2
    matrices = 4 * width * width + 2 * width * config.intermediate_size
    biases = 5 * width + config.intermediate_size
    pixels = 3 * config.patch_size**2 * width
    norms = (2 * depth + 1) * 2 * width
    positions = patches + 1
    return VisionCount(
        tower_parameters=depth * (matrices + biases) + pixels + (positions + 1) * width + norms,
        projector_parameters=(width + hidden_size + 2) * hidden_size + hidden_size,
        float32_parameters=norms,
        flops_per_tile=positions * depth * (2 * matrices + 4 * width * positions) + 2 * pixels * patches,
        flops_per_token=2 * (width + hidden_size) * hidden_size,
    )
