"""What is launched for SiLU and split in Triton, and its gradient."""

from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, power_of_two
from leyden.ops.silu_split import kernels as jitted

kernels = Kernels(jitted)

_TILE = 2048
"""Elements of each third in a program: 16 heads of 128."""


def _tiles(num_rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the compile-time constants for [rows, width]; an empty grid where there is nothing."""
    padded = power_of_two(width)
    rows = max(1, _TILE // padded)
    return (blocks(num_rows, rows) if width else 0,), {"K": width, "BK": padded, "ROWS": rows, "num_warps": 4}


@torch.library.custom_op("leyden::silu_split", mutates_args=())
def _forward(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [N, 3K] to three [N, K]."""
    N, K = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = (qkv.new_empty(N, K) for _ in range(3))
    grid, constants = _tiles(N, K)
    if grid[0]:
        kernels.split[grid](qkv, q, k, v, N, qkv.stride(0), **constants)
    return q, k, v


@_forward.register_fake
def _(qkv):
    q, k, v = (qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3) for _ in range(3))
    return q, k, v


@torch.library.custom_op("leyden::silu_split_backward", mutates_args=())
def _backward(dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
    """Contiguous rows [N, K] each, to [N, 3K]."""
    (N, K), dqkv = dq.shape, qkv.new_empty(qkv.shape)
    grid, constants = _tiles(N, K)
    if grid[0]:
        kernels.join[grid](dq, dk, dv, qkv, dqkv, N, qkv.stride(0), **constants)
    return dqkv


@_backward.register_fake
def _(dq, dk, dv, qkv):
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
    return _backward(*(grad.contiguous() for grad in grads), *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)


def silu_split_triton(qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.silu_split`."""
    shape = (*qkv.shape[:-1], qkv.shape[-1] // 3)
    q, k, v = _forward(last_dim_contiguous(qkv.flatten(0, 2)))
    return q.view(shape), k.view(shape), v.view(shape)
