"""Which body of an op runs: the float64-capable reference, plain PyTorch, or Triton.

The choice is made once per op and device, and logged; an explicit backend never falls back to another.
"""

import functools
import logging
import os
from typing import Literal

import torch

Backend = Literal["auto", "reference", "torch", "triton"]


def choose(op: str, backend: str, device: torch.device, *, triton: bool = False) -> str:
    """The body to run: ``"reference"``, ``"torch"`` or ``"triton"``.

    Args:
        op: the name of the op, for messages.
        backend: what the caller asked for.
        device: where the tensors are.
        triton: whether this op has a Triton body.

    Raises:
        ValueError: an unknown backend, or one that cannot run this op on this device.
    """
    if backend == "auto":
        return _automatic(op, device.type, triton)
    if backend in ("reference", "torch"):
        return backend
    if backend != "triton":
        raise ValueError(f"{op}: backend {backend!r} is unknown; allowed: 'auto', 'reference', 'torch', 'triton'.")
    if not triton:
        raise ValueError(f"{op} has no Triton body; use backend='auto', 'torch' or 'reference'.")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{op}: backend='triton' needs CUDA tensors (given: {device.type}); "
            "set TRITON_INTERPRET=1 to run it on the CPU in Triton's interpreter."
        )
    return "triton"


@functools.cache
def _automatic(op: str, device_type: str, triton: bool) -> str:
    chosen = "triton" if triton and device_type == "cuda" else "torch"
    logging.getLogger(__name__).info("%s on %s: backend %s", op, device_type, chosen)
    return chosen
