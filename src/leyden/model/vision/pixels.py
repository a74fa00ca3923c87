"""Pixels as a tower reads them."""

import torch

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue of CLIP's pictures, as shares of white (arXiv 2103.00020; the released processor)."""


def normalized(tiles: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, W] uint8 to float32 of mean 0 and deviation 1 over CLIP's pictures; floats are such already.

    Tiles travel as bytes, a quarter of the memory, and become numbers where they are read.
    """
    if tiles.dtype != torch.uint8:
        return tiles
    mean, deviation = (torch.tensor(of, device=tiles.device)[:, None, None] for of in (MEAN, DEVIATION))
    return tiles.to(torch.float32).div_(255).sub_(mean).div_(deviation)
