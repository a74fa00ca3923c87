"""Cross-entropy in chunks of rows: products by cuBLAS, and between them one kernel that reads each logit twice.

The gradients of both factors are formed in the forward, as in ``portable.py``; the backward scales them.
"""

import functools
from typing import Any

import torch

from leyden.ops.cross_entropy import kernels as jitted
from leyden.ops.launching import Kernels, power_of_two

kernels = Kernels(jitted)

_CHUNK_ELEMENTS = 1 << 28
"""Logits that exist at once: 512 MB in bfloat16. Each chunk adds to all of dweight, so short chunks are dear."""

_BLOCK = 16384
"""Words that a program reads at once, one element of 16 bytes a thread: so large that one or two programs fill a
multiprocessor, and the rows that are under way fit the cache between their two readings."""


@torch.library.custom_op("leyden::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float, differentiate: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, the loss without z-loss, and where ``differentiate`` the gradients of hidden and weight."""
    (N, _), V = hidden.shape, weight.shape[0]
    rows = chunk_rows(V)
    nll, z = hidden.new_empty(2, N, dtype=torch.float32)
    dhidden = hidden.new_empty(hidden.shape if differentiate else 0)
    dweight = weight.new_zeros(weight.shape if differentiate else 0, dtype=torch.float32)
    buffer = hidden.new_empty(min(rows, N), V)
    labels = labels.contiguous()
    block = min(_BLOCK, power_of_two(V))
    for start in range(0, N, rows):
        chunk = slice(start, min(start + rows, N))
        logits = torch.mm(hidden[chunk], weight.t(), out=buffer[: chunk.stop - start])
        kernels.losses[(len(logits),)](
            logits, labels[chunk], nll[chunk], z[chunk], z_loss, V, logits.stride(0),
            BLOCK=block, DIFFERENTIATE=differentiate, num_warps=max(4, block // 512),
        )  # fmt: skip
        if differentiate:
            torch.mm(logits, weight, out=dhidden[chunk])  # the logits are their gradient by now
            _add_product(dweight, logits.t(), hidden[chunk])
    total = nll.sum()
    return total + z_loss * z.square().sum(), total, dhidden, dweight.to(weight.dtype)


@_forward.register_fake
def _(hidden, weight, labels, z_loss, differentiate):
    loss, nll = (hidden.new_empty((), dtype=torch.float32) for _ in range(2))
    dhidden, dweight = (x.new_empty(x.shape if differentiate else 0) for x in (hidden, weight))
    return loss, nll, dhidden, dweight


def chunk_rows(vocab: int) -> int:
    """Rows whose logits exist at once: whole tiles of a matrix product where so many fit."""
    rows = max(1, _CHUNK_ELEMENTS // vocab)
    return rows // 128 * 128 or rows


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a b`` in float32, whatever the dtype of a and b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif _accumulates(a.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b)


@functools.cache
def _accumulates(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this PyTorch adds products of ``dtype`` to float32 without rounding them in between."""
    total, x = torch.zeros(16, 16, device=device), torch.zeros(16, 16, dtype=dtype, device=device)
    try:
        torch.addmm(total, x, x, out_dtype=total.dtype, out=total)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    scale = grads[0]
    if scale is None:
        return (None,) * 5
    return *(x * scale.to(x.dtype) for x in ctx.saved_tensors), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def linear_cross_entropy_triton(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float, differentiate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.linear_cross_entropy`."""
    loss, nll, _, _ = _forward(hidden, weight, labels, z_loss, differentiate)
    return loss, nll.detach()
