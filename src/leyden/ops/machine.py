"""The table of ``leyden info --machine``: what this machine is, and which body of each op runs on it and why."""

import ctypes
import os
import platform
from collections.abc import Callable

import torch

from leyden.core.device import default_device, matmul_flops_per_second
from leyden.core.waiting import cores_of_others, waiting_settings
from leyden.ops import native
from leyden.ops.choices import CHOICES, BlockSize
from leyden.ops.native import build, cache, processor

_KNOWN = (
    *("sse4_2", "avx2", "fma", "avx512f", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve"),
)
"""Instruction sets that make a difference to products of matrices, by the kernel's names."""


def _instructions() -> str:
    return " ".join(name for name in _KNOWN if name in processor.features()) or "not known"


def _bodies() -> str:
    loaded = native.load()
    if isinstance(loaded, native.UnavailableError):
        return f"PyTorch: {loaded}"
    return f"native, {loaded.origin}"


def _library() -> str:
    loaded = native.load()
    return "none" if isinstance(loaded, native.UnavailableError) else str(loaded.path)


def _compiler() -> str:
    try:
        return str(build.Compiler.find())
    except build.BuildError as reason:
        return f"none: {reason}"


def _caches() -> str:
    sizes = processor.caches()
    said = ", ".join(f"level {level} {size >> 10:,} KiB" for level, size in sizes.items())
    return f"{said} (as the system reports)" if said else "not reported by the system; usual sizes are assumed"


def _products() -> str:
    # Small ones: on a processor without arithmetic in bfloat16, larger ones take seconds.
    rates = ((dtype, matmul_flops_per_second(dtype, size=256) / 1e9) for dtype in (torch.float32, torch.bfloat16))
    return (
        ", ".join(f"{rate:.3g} GFLOP/s in {str(dtype).removeprefix('torch.')}" for dtype, rate in rates) + ", measured"
    )


def _own_products() -> str:
    loaded = native.load()
    if isinstance(loaded, native.UnavailableError):
        return "none"
    ops = {
        "experts": loaded.leyden_experts_forward_pays,
        "gradients of matrices": loaded.leyden_matmul_pays,
        "attention": loaded.leyden_attention_pays,
    }
    dtypes = {"bfloat16": 1, "float32": 0}
    own = [f"{op} in {name}" for op, pays in ops.items() for name, bit in dtypes.items() if pays(ctypes.c_int64(bit))]
    return f"{', '.join(own) or 'none, but those of PyTorch'}; from the instruction sets"


def _size(choice: BlockSize) -> Callable[[], str]:
    return lambda: choice.described(processor.caches())


def _threads() -> str:
    # Not all of the machine's cores need be this process's.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{torch.get_num_threads()} on {cores} cores"


def _waiting() -> str:
    said = os.environ.get("OMP_WAIT_POLICY")
    how = f"as OMP_WAIT_POLICY={said} says" if said else "by sleeping" if waiting_settings() else "by spinning"
    return f"{how}; other programs keep {cores_of_others():.1f} cores busy"


def _device() -> str:
    device = default_device()
    if device.type == "cpu":
        return "none"
    return f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} of them"


FIELDS: dict[str, Callable[[], object]] = {
    "processor": processor.name,
    "instruction sets": _instructions,
    "caches": _caches,
    "matrix products": _products,
    "threads": _threads,
    "threads wait": _waiting,
    "GPU": _device,
    "ops on the CPU": _bodies,
    "native products": _own_products,
    **{choice.name: _size(choice) for choice in CHOICES},
    "library": _library,
    "C++ compiler": _compiler,
    "compiled code": lambda: cache.folder() or "nowhere yet",
    "PyTorch": lambda: torch.__version__,
    "system": platform.platform,
}
"""What is said, in order, and who knows it."""


def machine_text(**more: Callable[[], object]) -> str:
    """The table, a line a field; ``more`` are fields of other rooms, behind these."""
    width = max(map(len, FIELDS)) + 2
    return "\n".join(f"{name:<{width}}{known()}" for name, known in {**FIELDS, **more}.items())
