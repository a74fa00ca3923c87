"""Experts that ranks share: tokens travel to their experts and back, several groups of them at once.

The order is that of MiniMax-01 (arXiv 2501.08313, section 3.1): for every group of tokens an all-to-all among the ranks
that have different experts (EP), an all-gather among those that have a part of each (ETP), the experts, a
reduce-scatter over ETP, an all-to-all back. The backward takes the same way with gradients, since the adjoint of each
step is its counterpart; groups overlap in both.

Rows are as many as there are kept assignments: nothing is padded. The gather and the reduce-scatter, whose rows are
unequal too, are all-to-alls in which no rank sends to itself. One way there and back hands, over all ranks,
``2 * kept * D`` numbers to EP (what stays on its rank included) and ``2 * kept * (etp - 1) * D`` to ETP; a training
step takes two, and before the first, ranks hand over ``token_groups * E`` counts each to EP and as many to ETP.
"""

from functools import reduce
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from leyden.ops import Routing, swiglu_experts
from leyden.ops.gradients import backward_may_follow
from leyden.parallel.experts.groups import lay_out
from leyden.parallel.experts.journey import Journey
from leyden.parallel.experts.tape import Tape
from leyden.parallel.mesh import Mesh


class ExpertExchange:
    """:func:`leyden.model.experts.compute` where each rank has some experts, or a part of each.

    Args:
        mesh: of the ranks; its plan says into how many groups a rank's tokens are cut.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def __call__(self, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, routing: Routing) -> torch.Tensor:
        """The experts' outputs for this rank's tokens; all ranks of its EP and ETP groups call this together.

        Args:
            x: [N, D], tokens that no other rank has.
            gate_up: [E / ep, 2F / etp, D], this rank's experts, from ``ep rank * E / ep`` on.
            down: [E / ep, D, F / etp].
            routing: of these tokens over all E experts.

        Returns:
            [N, D] in the dtype of x. Outputs are weighted and summed where the token is, parts of an output over ETP
            before that; both in float32 (float64 for float64) and always in the same order.
        """
        journey = Journey(self._mesh, lay_out(routing, self._mesh, len(gate_up)))
        keep = backward_may_follow(x, gate_up, down, routing.weights)
        return _Exchange.apply(x, gate_up, down, routing.weights, journey, keep)


class _Exchange(torch.autograd.Function):
    """All groups' journeys as one function, which so decides the order of its backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        weights: torch.Tensor,
        journey: Journey,
        keep: bool,
    ) -> torch.Tensor:
        groups = journey.groups
        tapes = [Tape() for _ in groups]
        out, results = torch.empty_like(x), list[torch.Tensor]()  # of a group after the other

        def leave(index: int) -> torch.Tensor:
            return x.index_select(0, groups[index].token)

        def work(index: int, rows: torch.Tensor) -> torch.Tensor:
            def compute(rows: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
                experts = groups[index].experts[:, None]
                return swiglu_experts(rows, gate_up, down, experts, weights.new_ones(experts.shape))

            return tapes[index].record(compute, rows, gate_up, down) if keep else compute(rows, gate_up, down)

        def back(index: int, rows: torch.Tensor) -> None:
            results.append(rows)
            tokens = groups[index].tokens
            share = weights[tokens].split(1, dim=1)
            out[tokens] = reduce(torch.add, map(torch.mul, share, groups[index].each_choice(rows)))

        journey.make("forward", leave, work, back)
        if keep:
            saved = [tape.release() for tape in tapes]
            ctx.save_for_backward(weights, *results, *(tensor for each in saved for tensor in each))
            ctx.journey, ctx.tapes, ctx.num_saved = journey, tapes, [len(each) for each in saved]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dout,), groups = grads, ctx.journey.groups
        weights, *tensors = ctx.saved_tensors
        results, tensors = tensors[: len(groups)], iter(tensors[len(groups) :])
        saved = [[next(tensors) for _ in range(count)] for count in ctx.num_saved]
        dx, dweights, dexperts = torch.empty_like(dout), torch.empty_like(weights), []

        def leave(index: int) -> torch.Tensor:
            share = weights.flatten().index_select(0, groups[index].assignment)
            return (dout.index_select(0, groups[index].token) * share[:, None]).to(dout.dtype)

        def work(index: int, dy: torch.Tensor) -> torch.Tensor:
            drows, *more = ctx.tapes[index].backward(saved[index], dy)
            dexperts[:] = [total.add_(grad) for total, grad in zip(dexperts, more, strict=True)] if dexperts else more
            return drows

        def back(index: int, drows: torch.Tensor) -> None:
            group = groups[index]
            dx[group.tokens] = reduce(torch.add, group.each_choice(drows))
            for j, row in enumerate(group.each_choice(results[index])):
                dweights[group.tokens, j] = (row * dout[group.tokens]).sum(-1).to(weights.dtype)

        ctx.journey.make("backward", leave, work, back)
        return dx, *dexperts, dweights, None, None
