"""What is launched for attention over ranges of keys in Triton, and its gradients; nothing is read back."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, has_large_memory, last_dim_contiguous, padded, products
from leyden.ops.ranged_attention import kernels as jitted

kernels = Kernels(jitted)


@dataclass(frozen=True)
class AttentionTiles:
    """Queries and keys of a block, and warps: of the two kernels that walk over keys, and of the one over queries."""

    walk: tuple[int, int, int]
    keys: tuple[int, int, int]

    @classmethod
    def of(cls, q: torch.Tensor) -> "AttentionTiles":
        """By padded head width, dtype, and whether the GPU has the shared memory of Hopper."""
        table = _IN_FLOAT if q.dtype != torch.bfloat16 else _LARGE if has_large_memory(q.device) else _SMALL
        return next((tiles for width, tiles in table.items() if q.shape[2] <= width), list(table.values())[-1])


# As large as registers and shared memory hold with two blocks of keys (or queries) ahead of the products.
_LARGE = {128: AttentionTiles((128, 64, 8), (64, 128, 8)), 256: AttentionTiles((64, 32, 8), (32, 64, 8))}
_SMALL = {
    64: AttentionTiles((64, 32, 4), (64, 32, 4)),
    128: AttentionTiles((64, 32, 4), (32, 64, 8)),
    256: AttentionTiles((32, 16, 4), (16, 32, 4)),
}
_IN_FLOAT = {
    64: AttentionTiles((32, 32, 4), (32, 32, 4)),
    128: AttentionTiles((32, 16, 8), (32, 16, 8)),
    256: AttentionTiles((16, 16, 8), (16, 16, 8)),
}

_FOUND = 128
"""Blocks of keys whose queries one program finds."""


def _constants(q: torch.Tensor, k: torch.Tensor, tile: tuple[int, int, int]) -> dict[str, Any]:
    (H, D), (product, precision) = q.shape[1:], products(q.dtype)
    return {
        "H": H, "GROUP": H // k.shape[1], "D": D, "BD": padded(D), "BM": tile[0], "BN": tile[1],
        "PRODUCT": product, "PRECISION": precision, "num_warps": tile[2], "num_stages": 3,
    }  # fmt: skip


def _total(*tensors: torch.Tensor) -> torch.Tensor:
    """The sum of all their numbers, one float32 where they are: not finite where one of them is not."""
    return functools.reduce(torch.add, (x.sum(dtype=torch.float32) for x in tensors))


@torch.library.custom_op("leyden::ranged_attention", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and the log-sum-exp; it has no gradient by itself."""
    out, lse = q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[:2], dtype=torch.float32)
    (T, H, D), tile = q.shape, AttentionTiles.of(q).walk
    if T:
        grid = (blocks(T, tile[0]) * (H // k.shape[1]), k.shape[1])
        numbers = (D**-0.5, T, k.shape[0], *(stride for x in (q, k, v) for stride in x.stride()[:2]))
        total = _total(v)
        for careful in (False, True):
            kernels.attend[grid](
                q, k, v, first, last, out, lse, total, *numbers, CAREFUL=careful, **_constants(q, k, tile)
            )
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
    """dq, dk and dv."""
    dq, dk, dv = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    (T, H, D), (S, key_heads, _), tiles = q.shape, k.shape, AttentionTiles.of(q)
    inputs = (dout, q, k, v, lse, delta, first, last)
    numbers = (D**-0.5, T, S, *(stride for x in (dout, q, k, v) for stride in x.stride()[:2]))
    if T:
        grid = (blocks(T, tiles.walk[0]) * (H // key_heads), key_heads)
        total = _total(k, v)
        for careful in (False, True):
            kernels.differentiate_queries[grid](
                *inputs, dq, total, *numbers, CAREFUL=careful, **_constants(q, k, tiles.walk)
            )
    if S:
        count = blocks(S, tiles.keys[1])
        bounds = first.new_empty(4, count)
        kernels.find[(blocks(count, _FOUND),)](
            first, last, bounds, T, T.bit_length(), count, BN=tiles.keys[1], BLOCK=_FOUND
        )
        # Where a number of q or dout is not finite, neither is the product of dout and the output.
        total = _total(delta)
        for careful in (False, True):
            kernels.differentiate_keys[(count, key_heads)](
                *inputs, bounds, dk, dv, total, *numbers, CAREFUL=careful, **_constants(q, k, tiles.keys)
            )
    return dq, dk, dv


@_backward.register_fake
def _(dout, q, k, v, lse, delta, first, last):
    dq, dk, dv = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, k, v))
    return dq, dk, dv


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy whose rows lie near each other: within a block, kernels count elements in 32 bits."""
    return last_dim_contiguous(x) if x.stride(0) < 1 << 24 else x.contiguous()


def ranged_attention_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention`."""
    rows = (_rows(x) for x in (q, k, v))
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
    rows = (_rows(x) for x in (dout, q, k, v))
    facts = (x.float().contiguous() for x in (lse, delta))
    return _backward(*rows, *facts, *(x.to(q.device).contiguous() for x in (first, last)))
