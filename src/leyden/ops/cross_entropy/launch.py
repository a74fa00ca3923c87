"""The losses of tokens on a GPU, in chunks of rows: products by cuBLAS, and between them one kernel that reads each
logit twice."""

import functools

import torch

from leyden.ops.cross_entropy import kernels as jitted
from leyden.ops.cross_entropy.autograd import TokenLosses, Upstream
from leyden.ops.launching import Kernels, power_of_two

kernels = Kernels(jitted)

_CHUNK_ELEMENTS = 1 << 28
"""Logits that exist at once: 512 MiB in bfloat16. Each chunk adds to all of dweight, so short chunks are dear."""

_BLOCK = 16384
"""Words that a program reads at once, one element of 16 bytes a thread: so large that one or two programs fill a
multiprocessor, and the rows that are under way fit the cache between their two readings."""


@torch.library.custom_op("leyden::linear_token_nll", mutates_args=())
def _pass(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    dnll: torch.Tensor | None,
    dlog_z: torch.Tensor | None,
    z_loss: float,
    differentiate: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``nll`` and ``log_z``; where ``differentiate``, the gradients of hidden and weight, else two empty tensors."""
    (N, _), V = hidden.shape, weight.shape[0]
    rows = chunk_rows(V)
    nll, z = hidden.new_empty(N, dtype=torch.float32), hidden.new_empty(N, dtype=torch.float32)
    dhidden = hidden.new_empty(hidden.shape if differentiate else 0)
    dweight = weight.new_zeros(weight.shape if differentiate else 0, dtype=torch.float32)
    buffer = hidden.new_empty(min(rows, N), V)
    of_rows = [None if x is None else x.contiguous() for x in (labels, dnll, dlog_z)]
    block = min(_BLOCK, power_of_two(V))
    for start in range(0, N, rows):
        chunk = slice(start, min(start + rows, N))
        logits = torch.mm(hidden[chunk], weight.t(), out=buffer[: chunk.stop - start])
        given = (None if x is None else x[chunk] for x in of_rows)
        kernels.losses[(len(logits),)](
            logits, *given, nll[chunk], z[chunk], z_loss, V, logits.stride(0), BLOCK=block,
            DIFFERENTIATE=differentiate, HAS_DNLL=dnll is not None, HAS_DLOG_Z=dlog_z is not None,
            num_warps=max(4, block // 512),
        )  # fmt: skip
        if differentiate:
            torch.mm(logits, weight, out=dhidden[chunk])  # the logits are their gradient by now
            _add_product(dweight, logits.t(), hidden[chunk])
    return nll, z, dhidden, dweight.to(weight.dtype)


@_pass.register_fake
def _(hidden, weight, labels, dnll, dlog_z, z_loss, differentiate):
    nll, z = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))
    dhidden, dweight = (x.new_empty(x.shape if differentiate else 0) for x in (hidden, weight))
    return nll, z, dhidden, dweight


def token_nll(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, upstream: Upstream | None
) -> TokenLosses:
    """See :class:`leyden.ops.cross_entropy.autograd.Body`."""
    nll, z, dhidden, dweight = _pass(hidden, weight, labels, *(upstream or Upstream()), upstream is not None)
    return TokenLosses(nll, z) if upstream is None else TokenLosses(nll, z, dhidden, dweight)


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
