"""An op's own backward, for use inside a larger autograd function that decides when it runs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks


class Tape:
    """The graph of one call of an op, apart from the tensors that it keeps for its backward.

    Those stand in :attr:`saved`, for the larger function to save as its own: activation checkpointing and offloading,
    which see what an autograd function saves, then see them too. Left in the graph they would stay in memory, and
    recomputation would run once for every graph.
    """

    def __init__(self) -> None:
        self.saved: list[torch.Tensor] = []
        self._inputs: list[GradientEdge] = []
        self._output: GradientEdge | None = None

    def record(self, op: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """``op(*inputs)``, without a graph to the outside."""
        with torch.enable_grad(), saved_tensors_hooks(self._pack, self._unpack):
            leaves = _Leaves.apply(torch.empty(0, requires_grad=True), *inputs)
            out = op(*leaves)
            self._inputs = [get_gradient_edge(leaf) for leaf in leaves]
            self._output = get_gradient_edge(out)
        return out.detach()

    def backward(self, saved: Sequence[torch.Tensor], grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The gradients of the inputs.

        Args:
            saved: what :attr:`saved` held, or an equal recomputation of it.
            grad: of the output.
        """
        assert self._output is not None, "record comes first"
        self.saved = list(saved)
        grads = torch.autograd.grad([self._output], self._inputs, [grad], retain_graph=True)  # it holds no memory
        self.saved = []
        return grads

    def release(self) -> list[torch.Tensor]:
        """Hand over what is saved."""
        saved, self.saved = self.saved, []
        return saved

    def _pack(self, tensor: torch.Tensor) -> int:
        self.saved.append(tensor.detach())
        return len(self.saved) - 1

    def _unpack(self, index: int) -> torch.Tensor:
        return self.saved[index]


class _Leaves(torch.autograd.Function):
    """Where a graph begins; unlike true leaves, whose nodes hold their tensors, these can be freed."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.detach() for tensor in inputs)
