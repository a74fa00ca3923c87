"""The order of assignments by expert, on any device; ``native.cpp`` has its own for CPUs."""

import torch


def sort_by_expert(
    experts: torch.Tensor, kept: torch.Tensor | None, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort assignments by expert, those of one expert in the order in which they are given, and dropped ones last.

    The host does not wait for the device.

    Args:
        experts: any shape, M integers from 0 to ``num_experts``; the latter count as dropped.
        kept: bool of the same shape; where it is False the assignment is dropped. None: nowhere.
        num_experts: E, fewer than 32,768.

    Returns:
        order: [M] int64, the assignment of each row.
        row_of: [M] int64, the row of each assignment.
        ends: [E] int32, the end of each expert's rows.
    """
    expert = experts.flatten().to(torch.int16)  # a quarter of the radix sort's passes
    if kept is not None:
        expert = expert.masked_fill(~kept.flatten(), num_experts)
    by_expert, order = torch.sort(expert, stable=True)
    each = torch.arange(num_experts, dtype=expert.dtype, device=expert.device)
    ends = torch.searchsorted(by_expert, each, right=True, out_int32=True)
    row_of = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return order, row_of, ends
