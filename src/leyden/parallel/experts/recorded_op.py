"""One call of an op whose backward a larger autograd function runs when it decides to."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks


class RecordedOp:
    """The autograd graph of one call of an op, held apart from the tensors that it saved for its backward.

    Those the larger function saves as its own: activation checkpointing and offloading, which see what an autograd
    function saves, then see them too. Left in the graph they would stay in memory, and recomputation would run once
    for every graph.
    """

    def __init__(self) -> None:
        self._saved: list[torch.Tensor] = []  # the graph refers to this list alone: the object refers to the graph
        self._inputs: list[GradientEdge] = []
        self._output: GradientEdge | None = None

    def record(self, op: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Compute ``op(*inputs)``; the result is detached from the graph, which is kept here."""
        kept = self._saved

        def pack(tensor: torch.Tensor) -> int:
            kept.append(tensor.detach())
            return len(kept) - 1

        with torch.enable_grad(), saved_tensors_hooks(pack, kept.__getitem__):
            leaves = _Leaves.apply(torch.empty(0, requires_grad=True), *inputs)
            out = op(*leaves)
            self._inputs = [get_gradient_edge(leaf) for leaf in leaves]
            self._output = get_gradient_edge(out)
        return out.detach()

    def release(self) -> list[torch.Tensor]:
        """Take the saved tensors out of the graph and return them."""
        saved = self._saved.copy()
        self._saved.clear()
        return saved

    def backward(self, saved: Sequence[torch.Tensor], grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of the inputs.

        Args:
            saved: what :meth:`release` gave, or an equal recomputation of it.
            grad: of the output.
        """
        assert self._output is not None, "record comes first"
        self._saved.extend(saved)
        grads = torch.autograd.grad([self._output], self._inputs, [grad], retain_graph=True)  # it holds no memory
        self._saved.clear()
        return grads


class _Leaves(torch.autograd.Function):
    """Where a graph begins; unlike true leaves, whose nodes hold their tensors, these can be freed."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.detach() for tensor in inputs)
