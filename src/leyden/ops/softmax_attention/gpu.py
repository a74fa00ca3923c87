"""Softmax attention by the best of PyTorch's GPU kernels that can take the call.

- Whole rows: ``scaled_dot_product_attention``, which is FlashAttention wherever that runs.
- Packed documents, rows behind a cache, sliding windows: FlashAttention by ``varlen_attn``, which finds the documents'
  bounds on the device, so that nothing is read back.
- Where FlashAttention does not run (float32, heads wider than 192, GPUs before Ampere): ``portable.py``.

With ``torch.use_deterministic_algorithms`` their backward gives the same bits every time; without, it need not.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch

from leyden.ops.backend import constant_when_compiled
from leyden.ops.softmax_attention.portable import softmax_attention_portable

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_WIDEST_HEAD = 192
"""Dims of a head: the widest whose backward every GPU from Ampere on can hold."""

Kernel = Literal["rows", "varlen", "portable"]


def softmax_attention_gpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None, window: int | None
) -> torch.Tensor:
    """See :func:`leyden.ops.softmax_attention`."""
    chosen = kernel(q, k, cu_seqlens, window)
    if chosen == "varlen":
        return _varlen(q, k, v, cu_seqlens, window)
    if chosen == "portable" or q.dtype not in _FLASH_DTYPES:
        # Only FlashAttention knows grouped queries. The next best kernel takes as many key heads as query heads, and
        # what runs otherwise keeps the whole matrix of scores.
        group = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    return softmax_attention_portable(q, k, v, cu_seqlens, window)


def kernel(q: torch.Tensor, k: torch.Tensor, cu_seqlens: torch.Tensor | None, window: int | None) -> Kernel:
    """Which kernel takes this call: by shapes, dtype and what the device can do, never by values."""
    T, S = q.shape[1], k.shape[1]
    whole = cu_seqlens is None and (T == 1 or (T == S and (window is None or window >= S)))
    if whole:
        return "rows"
    flash = q.dtype in _FLASH_DTYPES and q.shape[-1] % 8 == 0 and q.shape[-1] <= _WIDEST_HEAD
    return "varlen" if flash and q.numel() and _has_varlen(q.device.index) else "portable"


@constant_when_compiled
def _has_varlen(device_index: int) -> bool:
    """Whether this PyTorch and this GPU have FlashAttention for packed documents, with windows."""
    built = torch.backends.cuda.is_flash_attention_available() and not torch.version.hip
    return built and _varlen_takes("window_size") and torch.cuda.get_device_capability(device_index) >= (8, 0)


@constant_when_compiled
def _varlen_takes(parameter: str) -> bool:
    """Whether ``varlen_attn`` is there and has this parameter, as its versions differ."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # where it is used: it takes a second, and triton
    except ImportError:
        return False
    return parameter in _parameters(varlen_attn)


@functools.cache
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor | None, window: int | None
) -> torch.Tensor:
    """All rows or documents in one call, end to end; the kernel aligns the last query with the last key."""
    from torch.nn.attention import varlen

    (B, T), S = q.shape[:2], k.shape[1]
    if cu_seqlens is None:
        index = torch.arange(B + 1, device=q.device, dtype=torch.int32)
        query_bounds, key_bounds = index * T, index * S
    else:
        query_bounds = key_bounds = cu_seqlens.to(torch.int32)
    rows = (x if x.stride(-1) == 1 else x.contiguous() for x in (q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)))
    attend: Any = varlen.varlen_attn  # its parameters depend on the version
    # T and S bound every document's length from above, which is all that the kernel needs; its own window counts the
    # keys before the query's.
    left = -1 if window is None else window - 1
    grouped = {"enable_gqa": True} if _varlen_takes("enable_gqa") else {}  # without, heads are grouped unasked
    return attend(*rows, query_bounds, key_bounds, T, S, window_size=(left, 0), **grouped).view(q.shape)
