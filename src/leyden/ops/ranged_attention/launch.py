"""What is launched for attention over ranges of keys in Triton, and its gradients; nothing is read back."""

from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, padded, products
from leyden.ops.ranged_attention import kernels as jitted

kernels = Kernels(jitted)


def _tiles(q: torch.Tensor, k: torch.Tensor) -> tuple[int, dict[str, Any]]:
    """The queries and keys of a block, as many of either, and the constants of all kernels."""
    (H, D), (product, precision) = q.shape[1:], products(q.dtype)
    width = padded(D)
    block = 64 if q.dtype == torch.bfloat16 and width <= 128 else 32  # as much as registers hold
    return block, {
        "H": H, "GROUP": H // k.shape[1], "D": D, "BD": width, "BM": block, "BN": block,
        "PRODUCT": product, "PRECISION": precision, "num_warps": 8 if width >= 128 else 4, "num_stages": 2,
    }  # fmt: skip


@torch.library.custom_op("leyden::ranged_attention", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the log-sum-exp; it has no gradient by itself."""
    out, lse = torch.empty_like(q, dtype=torch.float32), q.new_empty(q.shape[:2], dtype=torch.float32)
    (T, H, _), (block, constants) = q.shape, _tiles(q, k)
    if T:
        kernels.attend[(blocks(T, block), H)](
            q, k, v, first, last, out, lse, q.shape[2] ** -0.5, T, k.shape[0],
            *(stride for x in (q, k, v) for stride in x.stride()[:2]), **constants,
        )  # fmt: skip
    return out, lse


@_forward.register_fake
def _(q, k, v, first, last):
    return q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("leyden::ranged_attention_backward", mutates_args=())
def _backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk and dv. As neither bound falls, a search finds the queries that see a block of keys."""
    dq, dk, dv = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    (T, H, D), S, (block, constants) = q.shape, k.shape[0], _tiles(q, k)
    inputs = (dout, q, k, v, lse, delta, first, last)
    numbers = (D**-0.5, T, S, *(stride for x in (dout, q, k, v) for stride in x.stride()[:2]))
    if T:
        kernels.differentiate_queries[(blocks(T, block), H)](*inputs, dq, *numbers, **constants)
    if S:
        begins = torch.arange(0, S, block, device=q.device, dtype=torch.int32)
        seen_from = torch.searchsorted(last, begins, right=True, out_int32=True)
        seen_to = torch.searchsorted(first, begins + block, out_int32=True)
        kernels.differentiate_keys[(len(begins), k.shape[1])](
            *inputs, seen_from, seen_to, dk, dv, *numbers, **constants
        )
    return dq, dk, dv


@_backward.register_fake
def _(dout, q, k, v, lse, delta, first, last):
    dq, dk, dv = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    return dq, dk, dv


def ranged_attention_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention`."""
    rows = (last_dim_contiguous(x) for x in (q, k, v))
    return _forward(*rows, *(x.to(q.device).contiguous() for x in (first, last)))


def ranged_attention_backward_triton(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention_backward`."""
    rows = (last_dim_contiguous(x) for x in (dout, q, k, v))
    facts = (x.float().contiguous() for x in (lse, delta))
    return _backward(*rows, *facts, *(x.to(q.device).contiguous() for x in (first, last)))
