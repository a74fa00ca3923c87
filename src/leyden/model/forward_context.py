"""Positions and documents of the tokens of one forward pass, and what came before them."""

from dataclasses import dataclass

import torch

from leyden.core.transfers import sent
from leyden.model.config import ModelConfig
from leyden.model.ranks import RowPart
from leyden.ops import rotary_angles

Wanted = int | torch.Tensor | None
"""Which rows of a forward pass are asked for: the last so many, those with these indices, or all."""


def take(x: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    """The wanted of x [B, T, ...]."""
    if isinstance(wanted, torch.Tensor):
        return x.index_select(1, wanted)
    return x if wanted is None else x[:, -wanted:]


@dataclass(frozen=True)
class ForwardContext:
    """Facts about the tokens of one forward pass that every layer shares.

    Attributes:
        start: how many tokens the cache holds before the first of these.
        cu_seqlens: [N+1], bounds of packed documents; None where each row is one sequence.
        positions: [T] int64, of each token in its sequence or document.
        cos, sin: [T, rotary_dim / 2] float32, the turn of each position in softmax layers.
        scale: what turned queries and keys are multiplied by in softmax layers, each.
        part: where the tokens stand in a row that several ranks share; ``cu_seqlens`` then bounds the documents within
            the part, of which the first and the last may go on beyond it. None: the tokens are all there are.
        lightning_turn: cos and sin [T, lightning_rotary_dim / 2] float32, the turn of each position in lightning
            layers; None where these do not turn. YaRN's factor, which is one of softmax attention's scores, is no part
            of it.
        score_factor: what the scores of latent attention are multiplied by beyond the scale of its heads.
    """

    start: int
    cu_seqlens: torch.Tensor | None
    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    scale: float
    part: RowPart | None = None
    lightning_turn: tuple[torch.Tensor, torch.Tensor] | None = None
    score_factor: float = 1.0

    def alone(self) -> torch.Tensor | None:
        """The bounds of the documents, for a layer that knows nothing of other ranks.

        Raises:
            RuntimeError: the row is shared, and what the layer would compute is not what the row's documents need.
        """
        if self.part is not None:
            raise RuntimeError(
                "this attention layer cannot share a row with other ranks: leyden.parallel.attach() gives it the means."
            )
        return self.cu_seqlens


def lay_out(
    config: ModelConfig,
    num_tokens: int,
    start: int,
    cu_seqlens: torch.Tensor | None,
    device: torch.device,
    part: RowPart | None = None,
) -> ForwardContext:
    """Count positions from ``start``, or from 0 within each packed document, and form their rotary angles.

    Args:
        config: RoPE's dims, base and scaling.
        num_tokens: of the row.
        start: how many tokens the cache holds before it.
        cu_seqlens: the bounds of its documents.
        device: of the tokens.
        part: of the row, if it is shared: only its tokens are laid out.
    """
    positions = torch.arange(start, start + num_tokens, device=device)
    if cu_seqlens is not None:
        cu_seqlens = sent(cu_seqlens, device)
        positions = positions - torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=num_tokens)
    if part is not None:
        positions = positions[part.start : part.stop]
        cu_seqlens = sent(torch.tensor(part.documents(), dtype=torch.int32), device)
    return at_positions(config, positions, start, cu_seqlens, part)


def at_positions(
    config: ModelConfig,
    positions: torch.Tensor,
    start: int = 0,
    cu_seqlens: torch.Tensor | None = None,
    part: RowPart | None = None,
) -> ForwardContext:
    """The facts about tokens at ``positions`` [T]; arguments as of :class:`ForwardContext`."""

    def turn(dims: int) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary_angles(positions, config.rope.frequencies(dims, positions.device))

    rope = config.rope
    cos, sin = turn(config.rotary_dim)
    dims = config.lightning_rotary_dim
    lightning_turn = None if dims == 0 else (cos, sin) if dims == config.rotary_dim else turn(dims)
    return ForwardContext(start, cu_seqlens, positions, cos, sin, rope.scale, part, lightning_turn, rope.score_factor)
