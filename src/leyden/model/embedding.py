"""The only way into a model: tokens become vectors, and other vectors stand in the place of some of them.

Training, pipelines, decoding and serving all enter here, so that a picture (later) has one place at which its vectors
meet those of the text.
"""

from dataclasses import dataclass

import torch
from torch import nn

from leyden.core.errors import UserError
from leyden.model.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Inserts:
    """Vectors that stand in the place of tokens of one forward pass.

    Attributes:
        places: [N] int64, which tokens: their numbers in the flattened [B, T]; none twice.
        vectors: [N, D], in any floating dtype; differentiable.
    """

    places: torch.Tensor
    vectors: torch.Tensor


def embed(
    embedding: nn.Module, ranks: Ranks, tokens: torch.Tensor, inserts: Inserts | None, multiplier: float
) -> torch.Tensor:
    """What the first layer reads.

    Args:
        embedding: of the vocabulary.
        ranks: those that compute the model.
        tokens: [B, T] int64; of those whose place an insert takes, any of the vocabulary.
        inserts: None for none.
        multiplier: of what the embedding gives and of the inserts, which take its place.

    Returns:
        [B, T, D]; fewer tokens where tensor ranks divide them.

    Raises:
        UserError: several ranks compute the model, and there are inserts; or these do not fit.
    """
    x = embedding(tokens)
    if inserts is not None:
        x = _with_inserts(x, ranks, inserts)
    return x if multiplier == 1 else x * multiplier


def _with_inserts(x: torch.Tensor, ranks: Ranks, inserts: Inserts) -> torch.Tensor:
    if type(ranks) is not Ranks:
        raise UserError(
            "inserts (vectors in the place of tokens) are read by one process, and several ranks compute this model; "
            "run it on one."
        )
    if inserts.vectors.shape != (*inserts.places.shape, x.shape[-1]) or inserts.places.ndim != 1:
        raise UserError(
            f"inserts have places [N] and vectors [N, {x.shape[-1]}]; given {list(inserts.places.shape)} and "
            f"{list(inserts.vectors.shape)}."
        )
    return x.flatten(0, 1).index_copy(0, inserts.places, inserts.vectors.to(x.dtype)).view_as(x)
