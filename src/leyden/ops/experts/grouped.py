"""Where ``torch.nn.functional.grouped_mm`` takes the products of all experts at once (torch 2.11 to 2.13).

It asks that rows of every operand begin at multiples of 16 bytes, and takes at most 1,023 groups. For bfloat16 on
Hopper and the Blackwell of data centres one kernel reads the bounds of groups on the device; elsewhere PyTorch reads
them on the host and takes one product after another.
"""

import torch

from leyden.ops.backend import constant_when_compiled

MOST_EXPERTS = 1023


def reason_against(x: torch.Tensor, down: torch.Tensor) -> str | None:
    """Why grouped_mm refuses experts ``down`` [E, D, F] on tokens of x, or None where it takes them."""
    num_experts, dim, width = down.shape
    multiple = 16 // x.element_size()
    if dim % multiple or width % multiple:
        return f"grouped_mm in {x.dtype} needs D and F to be multiples of {multiple}; given D = {dim}, F = {width}"
    if num_experts > MOST_EXPERTS:
        return f"grouped_mm takes at most {MOST_EXPERTS} experts; given {num_experts}"
    return None


def stays_on_device(x: torch.Tensor, down: torch.Tensor) -> bool:
    """Whether grouped_mm takes these on a GPU without asking the host."""
    return x.is_cuda and x.dtype == torch.bfloat16 and _has_kernel(x.device.index) and not reason_against(x, down)


@constant_when_compiled
def _has_kernel(device: int) -> bool:
    """Compute capability 9 or 10, which is what PyTorch's kernel is built for."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10)
