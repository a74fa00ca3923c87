"""The only way into a model: tokens become vectors, and other vectors stand in the place of some of them.

Training, pipelines, decoding and serving all enter here, so that a picture has one place at which its vectors meet
those of the text.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model.ranks import Ranks
from leyden.model.vision.encoder import Pictures, VisionEncoder


@dataclass(frozen=True, eq=False)
class Inserts:
    """Vectors that stand in the place of tokens of one forward pass.

    Attributes:
        places: [N] int64, which tokens: their numbers in the flattened [B, T] of the whole row; none twice.
        vectors: [N, D], in any floating dtype; differentiable.
    """

    places: torch.Tensor
    vectors: torch.Tensor


class Entrance(Protocol):
    """What has the embedding of a model: the model itself, or the first stage of a pipeline."""

    @property
    def embed_tokens(self) -> nn.Module | None:
        """Of the vocabulary; None on later stages."""
        ...

    @property
    def ranks(self) -> Ranks:
        """Those that compute the model."""
        ...

    @property
    def vision(self) -> VisionEncoder | None:
        """What makes vectors of pictures; None in a model of text alone, and on later stages."""
        ...


def embed(
    entrance: Entrance, tokens: torch.Tensor, inserts: Inserts | Pictures | None, multiplier: float
) -> torch.Tensor:
    """What the first layer reads.

    Args:
        entrance: whose embedding it is.
        tokens: [B, T] int64, of the whole row, where ranks share it; of those whose place an insert takes, any of the
            vocabulary.
        inserts: of the whole row; None for none.
        multiplier: of what the embedding gives and of the inserts, which take its place.

    Returns:
        [B, T', D], of this rank's own tokens.

    Raises:
        UserError: inserts that do not fit, or pictures for a model that has no vision side.
    """
    embedding, ranks, vision = entrance.embed_tokens, entrance.ranks, entrance.vision
    assert embedding is not None, "the first stage alone is given no hidden states"
    x = embedding(ranks.cut(tokens))
    if isinstance(inserts, Pictures) and vision is None:
        raise UserError(
            "this model has no vision side (its configuration has no vision), and is given pictures; take one that has."
        )
    several = type(ranks) is not Ranks
    if several and inserts is not None:
        inserts = _of_own_tokens(inserts, entrance, tokens)
    if isinstance(inserts, Pictures) or (several and vision is not None):
        assert vision is not None, "refused above"
        if not isinstance(inserts, Pictures):
            x, none = _with_inserts(x, inserts), torch.empty(0, dtype=torch.long, device=x.device)
            inserts = Pictures(x.new_empty(0), none, none)
        x, inserts = _looked_at(x, vision, inserts, several)
    x = _with_inserts(x, inserts)
    return x if multiplier == 1 else x * multiplier


def _of_own_tokens(inserts: Inserts | Pictures, entrance: Entrance, tokens: torch.Tensor) -> Inserts | Pictures:
    """Those that stand in the place of this rank's own tokens, with the tiles that they need and no others."""
    device = inserts.places.device
    own = entrance.ranks.own(torch.arange(tokens.shape[1], device=device)[None])[0]
    here = (inserts.places >= own[0]) & (inserts.places <= own[-1])
    places = inserts.places[here] - own[0]
    if isinstance(inserts, Inserts):
        return Inserts(places, inserts.vectors[here.to(inserts.vectors.device)])
    assert entrance.vision is not None, "refused before"
    return inserts.taken(here, places, entrance.vision.tower.config.grid**2)


def _looked_at(
    x: torch.Tensor, vision: VisionEncoder, pictures: Pictures, several: bool
) -> tuple[torch.Tensor, Inserts]:
    """The vectors of pictures, and x as it is.

    Several ranks gather the weights of the tower together and add up their gradients, so each of them must use it in
    every pass: one whose tokens show no tile looks at a blank one, of which zero times a vector is added to x.
    """
    if len(pictures.tiles) or not several:
        return x, Inserts(pictures.places, vision(pictures.tiles, pictures.rows))
    side = vision.tower.config.image_size
    vectors = vision(x.new_zeros(1, 3, side, side), torch.cat([pictures.rows, pictures.rows.new_zeros(1)]))
    return x + vectors[-1] * 0, Inserts(pictures.places, vectors[:-1])


def _with_inserts(x: torch.Tensor, inserts: Inserts | None) -> torch.Tensor:
    if inserts is None:
        return x
    if inserts.vectors.shape != (*inserts.places.shape, x.shape[-1]) or inserts.places.ndim != 1:
        raise UserError(
            f"inserts have places [N] and vectors [N, {x.shape[-1]}]; given {list(inserts.places.shape)} and "
            f"{list(inserts.vectors.shape)}."
        )
    places = inserts.places.to(x.device)
    return x.flatten(0, 1).index_copy(0, places, inserts.vectors.to(x.device, x.dtype)).view_as(x)
