"""What the public functions of the ops check before a body is chosen, so that all bodies refuse the same."""

import torch

from leyden.ops.native import in_reach


def check_floating(op: str, **tensors: torch.Tensor) -> None:
    """Raise ValueError unless all are of one dtype, a floating one."""
    dtype = None
    for tensor in tensors.values():
        if not tensor.is_floating_point() or dtype not in (None, tensor.dtype):
            given = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
            raise ValueError(f"{op}: one dtype, a floating one, expected; given {given}.")
        dtype = tensor.dtype


def check_indices(op: str, name: str, indices: torch.Tensor, end: int, ignored: int | None = None) -> None:
    """Raise ValueError unless the tensor holds integers from 0 to ``end - 1``, or ``ignored``.

    The numbers are looked at where they can be: on a GPU that would wait for all that runs there.
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"{op}: {name} in integers (int64) expected; given {indices.dtype}.")
    if torch.compiler.is_compiling() or not indices.numel() or not in_reach(indices):
        return
    lowest, highest = (int(bound) for bound in indices.aminmax())
    if lowest < 0 and ignored is not None:
        lowest = int(indices.where(indices != ignored, 0).min())
    if lowest < 0 or highest >= end:
        raise ValueError(
            f"{op}: {name} from 0 to {end - 1}{'' if ignored is None else f', or {ignored},'} expected; "
            f"given {lowest if lowest < 0 else highest}."
        )


def check_bounds(op: str, cu_seqlens: torch.Tensor, num_tokens: int) -> None:
    """Raise ValueError unless ``cu_seqlens`` are integers that rise from 0 to ``num_tokens``."""
    fit = cu_seqlens.ndim == 1 and not cu_seqlens.is_floating_point() and cu_seqlens.shape[0] > 1
    if fit and not torch.compiler.is_compiling() and in_reach(cu_seqlens):
        bounds = cu_seqlens.tolist()
        fit = bounds[0] == 0 and bounds[-1] == num_tokens and sorted(bounds) == bounds
    if not fit:
        raise ValueError(
            f"{op}: cu_seqlens [N+1] expected, integers that rise from 0 to T = {num_tokens}; given {cu_seqlens}."
        )
