"""Rotary position embedding on the first dims of each head (partial RoPE, half-split as in NeoX)."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating
from leyden.ops.rotary.frequencies import rotary_frequencies, yarn_frequencies
from leyden.ops.rotary.native import NativeRotary

__all__ = ["apply_rotary", "rotary_angles", "rotary_frequencies", "yarn_frequencies"]


def rotary_angles(positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of ``position * frequency``.

    Args:
        positions: [T] integers.
        frequencies: [R/2] float64, as :func:`rotary_frequencies` and :func:`yarn_frequencies` give them.

    Returns:
        Two float32 tensors [T, R/2]; angles are formed in float64, so that they hold at a million tokens.
    """
    angles = positions.to(torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def apply_rotary(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backend: str = "auto", *, scale: float = 1.0
) -> torch.Tensor:
    """Turn the pairs (i, i + R/2) of the first R dims of each head and multiply the whole head by ``scale``.

    Args:
        x: [B, T, H, D].
        cos, sin: [T, R/2] float32 with R at most D.
        backend: ``"auto"``, ``"reference"``, ``"torch"`` (which is the reference), ``"native"`` or ``"triton"``.
        scale: above 0; with 1 the dims that do not turn pass through.

    Returns:
        [B, T, H, D] in the dtype of x; what is computed is computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit together, or a backend that cannot run.
    """
    fit = x.ndim == 4 and cos.ndim == 2 and cos.shape == sin.shape
    if not fit or cos.shape[0] != x.shape[1] or 2 * cos.shape[1] > x.shape[3]:
        given = f"x {tuple(x.shape)}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}"
        raise ValueError(f"apply_rotary: x [B, T, H, D], cos and sin [T, R/2] with R <= D expected; given {given}.")
    check_floating("apply_rotary", x=x)
    check_floating("apply_rotary", cos=cos, sin=sin)
    chosen = choose("apply_rotary", backend, x, cos, sin, triton=x.dtype, native=x.dtype)
    if chosen == "native":
        return NativeRotary.apply(x, cos.float(), sin.float(), scale)
    if chosen == "triton":
        from leyden.ops.rotary.launch import apply_rotary_triton  # triton, where it is used

        return apply_rotary_triton(x, cos, sin, scale)
    half = cos.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = cos[:, None, :].to(dtype), sin[:, None, :].to(dtype)
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    first, second = first.to(dtype), second.to(dtype)
    turned = (first * cos - second * sin, second * cos + first * sin, rest.to(dtype))
    return torch.cat([(part * scale).to(x.dtype) for part in turned], dim=-1)
