"""Initial weights of the vision side: CLIP's (arXiv 2103.00020, section 2.5), and Xavier's for the projector."""

import math

import torch

from leyden.model.vision.config import VisionConfig


def initial_vision_weight(
    name: str, shape: tuple[int, ...], config: VisionConfig, generator: torch.Generator
) -> torch.Tensor:
    """The initial value of a weight of :class:`VisionEncoder` or :class:`VisionTower`, float32 on the CPU.

    Args:
        name: as in ``named_parameters()``, behind any prefix.
        shape: of the weight.
        config: of the tower.
        generator: that draws it.

    Raises:
        ValueError: no weight of the vision side has this name.
    """
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
        return torch.ones(shape)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return torch.randn(shape, generator=generator) * _deviation(name, shape, config)


def _deviation(name: str, shape: tuple[int, ...], config: VisionConfig) -> float:
    width, depth = config.hidden_size, 2 * config.num_hidden_layers
    if name.endswith(("class_embedding", "image_newline")):
        return shape[0] ** -0.5
    if name.endswith(("patch_embedding.weight", "position_embedding.weight")):
        return 0.02
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc2.weight")):
        return (width * depth) ** -0.5
    if name.endswith("out_proj.weight"):
        return width**-0.5
    if name.endswith("fc1.weight"):
        return (2 * width) ** -0.5
    if name.endswith(("linear_1.weight", "linear_2.weight")):
        return math.sqrt(2 / sum(shape))
    raise ValueError(f"the weight {name} has no initial value.")
