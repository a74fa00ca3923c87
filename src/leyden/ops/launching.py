"""What the Triton bodies share on the host: launching on the right device, tile arithmetic, precisions."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import triton.language as tl
from triton import knobs
from triton.runtime.jit import KernelInterface

_PRODUCTS = {
    torch.bfloat16: (tl.bfloat16, "ieee"),
    torch.float16: (tl.float32, "tf32x3"),
    torch.float32: (tl.float32, "ieee"),
}


class Kernels:
    """The kernels of a module, launched where their first argument is: ``kernels.attend[grid](q, ...)``.

    Triton launches on the current device, which need not be the tensors'; a kernel there would read addresses that are
    not its device's. Launching is beyond types: a subscript with the grid, compile-time constants by keyword.

    Attributes:
        module: where the kernels are defined.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.module, name)
        if isinstance(kernel, KernelInterface):
            kernel = _Kernel(kernel)
        setattr(self, name, kernel)
        return kernel


class _Kernel:
    def __init__(self, kernel: KernelInterface[Any]) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(first: torch.Tensor, *arguments: Any, **keywords: Any) -> None:
            if first.is_cuda and first.get_device() != torch.cuda.current_device():
                with torch.cuda.device(first.device):
                    self._kernel[grid](first, *arguments, **keywords)
            else:
                self._kernel[grid](first, *arguments, **keywords)

        return launch


_OFF_A_GPU = 9
"""The compute capability whose tiles are taken where kernels are interpreted."""


def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter (``TRITON_INTERPRET=1`` before they are imported)."""
    return knobs.runtime.interpret


def products(dtype: torch.dtype) -> tuple[Any, str]:
    """The dtype in which matrix products take tensors of ``dtype``, and ``tl.dot``'s input precision.

    Products of float16 may overflow it, so they are taken in float32: by three products of tf32, since one drops 13
    bits of what was computed in float32 before (decayed values, scores, states). The interpreter's bfloat16 products
    are wrong; there they are taken in float32 as well.
    """
    product, precision = _PRODUCTS[dtype]
    return (tl.float32 if interpreted() else product), precision


def power_of_two(count: int) -> int:
    """The least that is no smaller than ``count``."""
    return 1 << max(0, count - 1).bit_length()


def padded(dim: int) -> int:
    """The size of a tile that holds ``dim`` and can be multiplied: a power of two, at least 16."""
    return max(16, power_of_two(dim))


def blocks(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)


def last_dim_contiguous(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy where its last dim is strided: kernels take strides for all dims but that."""
    return x if x.stride(-1) == 1 else x.contiguous()


def has_large_memory(device: torch.device) -> bool:
    """Whether a program may hold 227 KB of shared memory: on Hopper, on the Blackwell of data centres, and off a GPU.

    Elsewhere it may hold 99 KB.
    """
    capability = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else _OFF_A_GPU
    return capability in (9, 10)


def multiprocessors(device: torch.device) -> int:
    """How many the GPU has; off a GPU, as many as an H200."""
    return _multiprocessors(device) if device.type == "cuda" else 132


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
