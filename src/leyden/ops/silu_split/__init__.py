"""SiLU of the joint projection of lightning attention, and its split into q, k and v."""

import torch

from leyden.ops.backend import choose
from leyden.ops.checks import check_floating
from leyden.ops.silu_split.native import silu_split_native
from leyden.ops.silu_split.portable import silu_split_portable
from leyden.ops.silu_split.reference import silu_split_reference

__all__ = ["silu_split"]


def silu_split(qkv: torch.Tensor, backend: str = "auto") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x * sigmoid(x)``, each head's thirds apart: what lightning attention reads (arXiv 2501.08313, section 2.2).

    Args:
        qkv: [B, T, H, 3K], each head's q, k and v in turn.
        backend: ``"auto"``, ``"reference"``, ``"torch"``, ``"native"`` or ``"triton"``.

    Returns:
        q, k and v: [B, T, H, K] in the dtype of qkv, computed in float32 (float64 for float64);
            perhaps views of one tensor.

    Raises:
        ValueError: a shape that has no thirds, or a backend that cannot run.
    """
    if qkv.ndim != 4 or qkv.shape[-1] % 3:
        raise ValueError(f"silu_split: qkv [B, T, H, 3K] expected; given {tuple(qkv.shape)}.")
    check_floating("silu_split", qkv=qkv)
    chosen = choose("silu_split", backend, qkv, triton=qkv.dtype, native=qkv.dtype)
    if chosen == "reference":
        return silu_split_reference(qkv)
    if chosen == "native":
        return silu_split_native(qkv)
    if chosen == "triton":
        from leyden.ops.silu_split.launch import silu_split_triton  # triton, where it is used

        return silu_split_triton(qkv)
    return silu_split_portable(qkv)
