"""An op's own backward, for use inside a larger autograd function that decides when it runs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks


class Tape:
    """The graph of one call of an op, apart from the tensors that it keeps for its backward.

    Those the larger function saves as its own: activation checkpointing and offloading, which see what an autograd
    function saves, then see them too. Left in the graph they would stay in memory, and recomputation would run once
    for every graph.
    """

    def __init__(self) -> None:
        self._shelf: list[torch.Tensor] = []  # the graph refers to this, and not to the tape, which refers to the graph
        self._inputs: list[GradientEdge] = []
        self._output: GradientEdge | None = None

    def record(self, op: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """``op(*inputs)``, without a graph to the outside."""
        shelf = self._shelf

        def pack(tensor: torch.Tensor) -> int:
            shelf.append(tensor.detach())
            return len(shelf) - 1

        with torch.enable_grad(), saved_tensors_hooks(pack, shelf.__getitem__):
            leaves = _Leaves.apply(torch.empty(0, requires_grad=True), *inputs)
            out = op(*leaves)
            self._inputs = [get_gradient_edge(leaf) for leaf in leaves]
            self._output = get_gradient_edge(out)
        return out.detach()

    def release(self) -> list[torch.Tensor]:
        """What the graph keeps for its backward, and no longer has."""
        saved = self._shelf.copy()
        self._shelf.clear()
        return saved

    def backward(self, saved: Sequence[torch.Tensor], grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of the inputs.

        Args:
            saved: what :meth:`release` gave, or an equal recomputation of it.
            grad: of the output.
        """
        assert self._output is not None, "record comes first"
        self._shelf.extend(saved)
        grads = torch.autograd.grad([self._output], self._inputs, [grad], retain_graph=True)  # it holds no memory
        self._shelf.clear()
        return grads


class _Leaves(torch.autograd.Function):
    """Where a graph begins; unlike true leaves, whose nodes hold their tensors, these can be freed."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.detach() for tensor in inputs)
