"""Where the tokens of one forward pass stand: their positions, their documents, what came before them."""

from dataclasses import dataclass

import torch

from leyden.model.config import ModelConfig
from leyden.ops import rotary_angles


@dataclass(frozen=True)
class Sequence:
    """Facts about the tokens of one forward pass that every layer shares.

    Attributes:
        start: how many tokens the cache holds before the first of these.
        cu_seqlens: [N+1], bounds of packed documents; None where each row is one sequence.
        cos, sin: [T, rotary_dim / 2] float32, the turn of each position.
    """

    start: int
    cu_seqlens: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor


def lay_out(
    config: ModelConfig, num_tokens: int, start: int, cu_seqlens: torch.Tensor | None, device: torch.device
) -> Sequence:
    """Count positions from ``start``, or from 0 within each packed document, and form their rotary angles."""
    positions = torch.arange(start, start + num_tokens, device=device)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(device)
        positions = positions - torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=num_tokens)
    cos, sin = rotary_angles(positions, config.rotary_dim, config.rope_theta)
    return Sequence(start, cu_seqlens, cos, sin)
