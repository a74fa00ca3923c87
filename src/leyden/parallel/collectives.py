"""Collectives that autograd passes through, each with its adjoint.

The rule that makes them compose: every rank's loss is its share of one sum, and a gradient is that of the sum over
all ranks. The adjoint of gathering is then reducing and scattering, that of a sum over ranks is the same sum, and that
of an exchange is the exchange back.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

# Collectives as functions of values, which have no public name: what writes into a buffer can neither be kept
# over a recomputation (recompute.py) nor be compiled without breaking the graph.
_functional: Any = torch.ops._c10d_functional


def gather(x: torch.Tensor, dim: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The ranks' tensors, of one shape, one behind the other along ``dim``; alone (None), x."""
    return x if group is None else _Gather.apply(x, dim, group)


def reduce_scatter(x: torch.Tensor, dim: int, group: dist.ProcessGroup | None) -> torch.Tensor:
    """This rank's share along ``dim``, which the ranks divide evenly, of the sum of their tensors; alone, x."""
    return x if group is None else _ReduceScatter.apply(x, dim, group)


def sum_over(x: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The sum of the ranks' tensors, on every rank; alone, x."""
    return x if group is None else _Sum.apply(x, group)


def exchange(
    x: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Rows [sum(sent), ...] to rows [sum(received), ...]: the first ``sent[0]`` go to rank 0, and so on; alone, x."""
    return x if group is None else _Exchange.apply(x, list(sent), list(received), group)


def begin_sum(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of the ranks' tensors, without a gradient and still on its way: :func:`arrived` waits for it."""
    return _functional.all_reduce(x.contiguous(), "sum", group.group_name)


def arrived(x: torch.Tensor) -> torch.Tensor:
    """What :func:`begin_sum` began, complete."""
    return _functional.wait_tensor(x)


def gather_rows(x: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """As :func:`gather`, without a gradient."""
    x = x.movedim(dim, 0).contiguous()
    whole = _functional.all_gather_into_tensor(x, group.size(), group.group_name)
    return _functional.wait_tensor(whole).movedim(0, dim)


def reduce_scatter_rows(x: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
    """As :func:`reduce_scatter`, without a gradient."""
    x = x.movedim(dim, 0).contiguous()
    share = _functional.reduce_scatter_tensor(x, "sum", group.size(), group.group_name)
    return _functional.wait_tensor(share).movedim(0, dim)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.dim, ctx.group = dim, group
        return gather_rows(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return reduce_scatter_rows(grads[0], ctx.dim, ctx.group), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.dim, ctx.group = dim, group
        return reduce_scatter_rows(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gather_rows(grads[0], ctx.dim, ctx.group), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _all_reduced(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _all_reduced(grads[0], ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchanged(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _exchanged(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _all_reduced(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    return arrived(begin_sum(x, group))


def _exchanged(x: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> torch.Tensor:
    return _functional.wait_tensor(_functional.all_to_all_single(x.contiguous(), received, sent, group.group_name))
