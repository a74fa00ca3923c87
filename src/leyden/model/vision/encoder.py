"""From pictures to the vectors that stand in a text in their place.

Which feature of which tile goes to which token is a list of integers that whoever cut the picture has made
(:mod:`leyden.tokenizer.pictures`): the model knows nothing of canvases, padding or the size of a picture.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu

from leyden.model.vision.config import VisionConfig
from leyden.model.vision.tower import VisionTower


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one forward pass.

    Attributes:
        tiles: [N, 3, S, S], pixels in uint8, or normalized ones in a floating dtype, of all pictures one behind
            another.
        rows: [n] int64, what stands at each of the places: the number of a patch, counted through all tiles (patch p of
            tile t is ``t * P + p``), or -1 for the vector that ends a row of a picture.
        places: [n] int64, the tokens whose place they take: their numbers in the flattened [B, T]; none twice.
    """

    tiles: torch.Tensor
    rows: torch.Tensor
    places: torch.Tensor

    def taken(self, which: torch.Tensor, places: torch.Tensor, patches: int) -> "Pictures":
        """Some of the vectors at other places, with the tiles that they are made of and no others.

        Args:
            which: [n] bool.
            places: [the number of those], int64.
            patches: of a tile.
        """
        rows = self.rows[which]
        shown = rows >= 0
        needed, number = torch.unique(rows[shown] // patches, return_inverse=True)
        rows[shown] = number * patches + rows[shown] % patches
        return Pictures(self.tiles[needed.to(self.tiles.device)], rows, places)

    @classmethod
    def joined(cls, parts: Sequence["Pictures"], patches: int) -> "Pictures":
        """The pictures of several texts in one, whose places are counted through all of them already."""
        shifts = itertools.accumulate((len(part.tiles) * patches for part in parts), initial=0)
        rows = [part.rows + (part.rows >= 0) * shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(torch.cat([p.tiles for p in parts]), torch.cat(rows), torch.cat([p.places for p in parts]))


class Projector(nn.Module):
    """From the tower's width to the decoder's: two matrices with a GELU in between."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.hidden_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., tower's width] to [..., hidden_size]."""
        return self.linear_2(gelu(self.linear_1(features)))


class VisionEncoder(nn.Module):
    """The tower, the projector, and the vector that ends every row of a picture.

    Args:
        config: of the tower.
        hidden_size: of the decoder.
    """

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.tower = VisionTower(config)
        self.projector = Projector(config, hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, tiles: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of pictures.

        Args:
            tiles, rows: as of :class:`Pictures`. Features that no row asks for are not projected.

        Returns:
            [n, hidden_size] in the dtype of the matrices; differentiable.
        """
        is_patch, vectors = rows >= 0, self.image_newline.expand(len(rows), -1)
        if not len(tiles):
            return vectors
        features = self.tower(tiles)[:, 1:].flatten(0, 1)  # the class token says nothing of a place
        return vectors.index_put((is_patch.nonzero().squeeze(1),), self.projector(features[rows[is_patch]]))
