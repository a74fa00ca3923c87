"""What the machine is: devices, threads, memory, and how fast it multiplies matrices.

Of other packages it imports torch alone, so that ``leyden.ops`` can use it on a bare machine.
"""

import ctypes
import functools
import statistics
import sys
import time
from pathlib import Path

import torch

from leyden.core.errors import UserError

# From glibc's malloc.h: the number of a setting that mallopt() takes.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_NEVER = -1


def default_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def find_device(name: str | None) -> torch.device:
    """The device that a user named (``cpu``, ``cuda``, ``cuda:1``), or the default one; a GPU becomes the current one.

    Raises:
        UserError: this machine has no such device.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    allowed = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name is not None and name not in allowed:
        raise UserError(f"--device {name}: this machine has {', '.join(allowed)}.")
    device = default_device() if name is None or name == "cuda" else torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


@functools.cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep freed blocks for reuse instead of handing them back to the kernel.

    By default glibc maps every large tensor anew, and the page faults of freshly mapped memory cost more than the
    arithmetic on it: adding 1 to 64 MB of floats ran at 7 GB/s so, and at 95 GB/s with blocks kept (2 CPU cores). No
    amount is handed back, however large: a step that needs gigabytes would fault in all of them at every turn, which
    took 26 % of the time of lightning attention over 131,072 tokens.

    Returns:
        True where the C library took the settings (glibc), False elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 64 << 20))
    return min(mallopt(name, value) for name, value in settings) == 1


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had: of a GPU, or of this machine and the control group that the process is in.

    None where the system does not say (no Linux).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(min(available, _left_of_control_group()))


def _left_of_control_group() -> float:
    """Below the limit of a container (version 2); what is cached of files makes room by itself."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - int((group / "memory.current").read_text()) + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return float("inf")


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that there is no memory, on a GPU or on the host (where torch raises a plain RuntimeError)."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in told or "allocate memory" in told


@functools.cache
def matmul_flops_per_second(dtype: torch.dtype, device_type: str = "cpu", size: int = 1024) -> float:
    """Measured rate of a square matrix product, in floating-point operations per second.

    This is the peak that model-FLOPs utilisation is stated against. It is the median of 9 products after 3 that are not
    counted; of fewer where these take more than a second, as those in bfloat16 do on a processor that has none.
    """
    device = torch.device(device_type)
    if device.type == "cuda":
        size = max(size, 8192)
    # Its own generator: a measurement must not move the random numbers of a run that is resumed.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, generator=generator).to(dtype)
    b = torch.randn(size, size, device=device, generator=generator).to(dtype)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > 1:
            break
    return 2 * size**3 / statistics.median(seconds[3:] or seconds)


def narrow_products_are_slow(device: torch.device) -> str | None:
    """One line that says so where products of 16-bit numbers take over twice as long as those in float32, or None.

    So they do on processors without arithmetic for them (x86 without AVX512_BF16 or AMX): seventy times as long with
    PyTorch 2.13 on one with AVX2. A GPU is taken to have it.
    """
    if device.type != "cpu":
        return None
    bf16, fp32 = (matmul_flops_per_second(dtype, size=256) / 1e9 for dtype in (torch.bfloat16, torch.float32))
    return f"products run at {bf16:.0f} GFLOP/s in bfloat16, {fp32:.0f} in float32" if 2 * bf16 < fp32 else None


def compute_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and one line that says why.

    bfloat16 on GPUs that have it; on a CPU whichever of bfloat16 and float32 multiplies faster, by measurement.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "bfloat16: the GPU supports it"
        return torch.float32, "float32: the GPU has no bfloat16"
    bf16 = matmul_flops_per_second(torch.bfloat16) / 1e9
    fp32 = matmul_flops_per_second(torch.float32) / 1e9
    dtype = torch.bfloat16 if bf16 > 1.2 * fp32 else torch.float32
    name = str(dtype).removeprefix("torch.")
    return dtype, f"{name}: matrix products run at {bf16:.0f} GFLOP/s in bfloat16, {fp32:.0f} in float32"
