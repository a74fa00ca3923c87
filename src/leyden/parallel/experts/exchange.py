"""Expert parallelism: tokens are dispatched to the ranks that hold their experts, and the outputs are combined.

The order is that of MiniMax-01 (arXiv 2501.08313, section 3.1): for every group of tokens an all-to-all among the ranks
that have different experts (EP), an all-gather among those that have a part of each (ETP), the experts, a
reduce-scatter over ETP, an all-to-all back. The backward exchanges gradients in the same order, since the adjoint of
each step is its counterpart; groups overlap in both.

Rows are as many as there are kept assignments: nothing is padded. The gather and the reduce-scatter, whose rows are
unequal too, are all-to-alls in which no rank sends to itself. Dispatch and combine together hand, over all ranks,
``2 * kept * D`` numbers to EP (what stays on its rank included) and ``2 * kept * (etp - 1) * D`` to ETP; a training
step does both twice, and before the first, ranks hand over ``token_groups * E`` counts each to EP and as many to ETP.
"""

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from leyden.ops import Int8Matrices, LowRankExperts, Routing, swiglu_experts, swiglu_experts_low_rank
from leyden.ops.gradients import backward_may_follow
from leyden.parallel.experts.dispatch import TokenGroup, start_all_to_all, token_groups
from leyden.parallel.experts.overlap import Exchange, record_event, run_staggered
from leyden.parallel.experts.recorded_op import RecordedOp
from leyden.parallel.mesh import Mesh

RowsToSend = Callable[[int], torch.Tensor]
"""From a group's number to the rows [rows, D] that it sends."""

Compute = Callable[[int, torch.Tensor], torch.Tensor]
"""From a group's number and its rows [R, D], on the ranks of their experts, to the outputs [R, D]."""

Receive = Callable[[int, torch.Tensor], None]
"""Takes a group's number and its outputs [rows, D] on the rank of its tokens, in the order in which they were sent."""


@dataclass(frozen=True, eq=False)
class Dispatcher:
    """Dispatches groups of tokens to their experts and combines the outputs.

    All ranks of an EP and ETP group call the same dispatchers in the same order.

    Attributes:
        mesh: of the ranks.
        groups: of this rank's tokens.
    """

    mesh: Mesh
    groups: Sequence[TokenGroup]

    def run(self, direction: str, rows_to_send: RowsToSend, compute: Compute, receive: Receive) -> None:
        """Send the rows of every group, compute on what arrives, and bring the outputs back.

        Args:
            direction: ``forward`` or ``backward``, for the recorded events.
            rows_to_send, compute, receive: see :data:`RowsToSend`, :data:`Compute` and :data:`Receive`.
        """
        run_staggered(
            self._exchange(direction, index, rows_to_send, compute, receive) for index in range(len(self.groups))
        )

    def _exchange(
        self, direction: str, index: int, rows_to_send: RowsToSend, compute: Compute, receive: Receive
    ) -> Exchange:
        ep, etp, group = self.mesh.groups["ep"], self.mesh.groups["etp"], self.groups[index]

        def all_to_all(
            stage: str, x: torch.Tensor, sent: list[int], received: list[int], over: dist.ProcessGroup
        ) -> Generator[None, None, torch.Tensor]:
            pending = start_all_to_all(x, sent, received, over)
            record_event(direction, stage, index, "issued")
            yield  # other groups go on
            rows = pending.wait()
            record_event(direction, stage, index, "done")
            return rows

        x = rows_to_send(index)
        if ep is not None:
            x = yield from all_to_all("dispatch", x, group.sent, group.received, ep)
        own, to_peers, from_peers = len(x), group.to_peers, group.from_peers
        if etp is not None:
            copies = x if etp.size() == 2 else x.repeat(etp.size() - 1, 1)
            parts = yield from all_to_all("gather", copies, to_peers, from_peers, etp)
            x = torch.cat([x, parts])
        x = compute(index, x)
        record_event(direction, "experts", index, "computed")
        if etp is not None:
            parts = yield from all_to_all("scatter", x[own:], from_peers, to_peers, etp)
            x = _sum([x[:own], *parts.split([own] * (etp.size() - 1))])
        if ep is not None:
            x = yield from all_to_all("combine", x, group.received, group.sent, ep)
        receive(index, x)


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in float32 (float64 for float64), in order."""
    total = parts[0].to(torch.promote_types(parts[0].dtype, torch.float32))
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)


class ExpertExchange:
    """:func:`leyden.model.experts.compute` where each rank has some experts, or a part of each.

    Args:
        mesh: of the ranks; its plan says into how many groups a rank's tokens are cut.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def __call__(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor | Int8Matrices,
        down: torch.Tensor | Int8Matrices,
        routing: Routing,
        additions: LowRankExperts | None = None,
    ) -> torch.Tensor:
        """The experts' outputs for this rank's tokens; all ranks of its EP and ETP groups call this together.

        Args:
            x: [N, D], tokens that no other rank has.
            gate_up: [E / ep, 2F / etp, D], this rank's experts, from ``ep rank * E / ep`` on.
            down: [E / ep, D, F / etp].
            routing: of these tokens over all E experts.
            additions: to these, which are then frozen; None for none.

        Returns:
            [N, D] in the dtype of x. Outputs are weighted and summed where the token is, parts of an output over ETP
            before that; both in float32 (float64 for float64) and always in the same order.
        """
        dispatcher = Dispatcher(self._mesh, token_groups(routing, self._mesh, len(gate_up)))

        def adapted(rows: torch.Tensor, *parts: torch.Tensor, chosen: torch.Tensor, ones: torch.Tensor) -> torch.Tensor:
            return swiglu_experts_low_rank(rows, gate_up, down, LowRankExperts(*parts), chosen, ones)

        # Of frozen weights the additions alone have gradients, and 8 bits are no tensor that autograd takes.
        op, trained = (_plain, (gate_up, down)) if additions is None else (adapted, additions)
        keep = backward_may_follow(x, routing.weights, *trained)
        return _Exchange.apply(x, routing.weights, dispatcher, keep, op, *trained)


def _plain(
    rows: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, *, chosen: torch.Tensor, ones: torch.Tensor
) -> torch.Tensor:
    return swiglu_experts(rows, gate_up, down, chosen, ones)


class _Exchange(torch.autograd.Function):
    """The exchange of all groups as one function, which therefore decides the order of its backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weights: torch.Tensor,
        dispatcher: Dispatcher,
        keep: bool,
        op: Callable[..., torch.Tensor],
        *trained: torch.Tensor,
    ) -> torch.Tensor:
        groups = dispatcher.groups
        calls = [RecordedOp() for _ in groups]
        out, results = torch.empty_like(x), list[torch.Tensor]()  # of a group after the other

        def rows_to_send(index: int) -> torch.Tensor:
            return x.index_select(0, groups[index].token)

        def compute(index: int, rows: torch.Tensor) -> torch.Tensor:
            chosen = groups[index].experts[:, None]
            experts = functools.partial(op, chosen=chosen, ones=weights.new_ones(chosen.shape))
            return calls[index].record(experts, rows, *trained) if keep else experts(rows, *trained)

        def receive(index: int, rows: torch.Tensor) -> None:
            results.append(rows)
            tokens = groups[index].tokens
            share = weights[tokens].split(1, dim=1)
            out[tokens] = reduce(torch.add, map(torch.mul, share, groups[index].each_choice(rows)))

        dispatcher.run("forward", rows_to_send, compute, receive)
        if keep:
            saved = [call.release() for call in calls]
            ctx.save_for_backward(weights, *results, *(tensor for each in saved for tensor in each))
            ctx.dispatcher, ctx.calls, ctx.num_saved = dispatcher, calls, [len(each) for each in saved]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dout,), groups = grads, ctx.dispatcher.groups
        weights, *tensors = ctx.saved_tensors
        results, tensors = tensors[: len(groups)], iter(tensors[len(groups) :])
        saved = [[next(tensors) for _ in range(count)] for count in ctx.num_saved]
        dx, dweights, dexperts = torch.empty_like(dout), torch.empty_like(weights), []

        def rows_to_send(index: int) -> torch.Tensor:
            share = weights.flatten().index_select(0, groups[index].assignment)
            return (dout.index_select(0, groups[index].token) * share[:, None]).to(dout.dtype)

        def compute(index: int, dy: torch.Tensor) -> torch.Tensor:
            drows, *more = ctx.calls[index].backward(saved[index], dy)
            dexperts[:] = [total.add_(grad) for total, grad in zip(dexperts, more, strict=True)] if dexperts else more
            return drows

        def receive(index: int, drows: torch.Tensor) -> None:
            group = groups[index]
            dx[group.tokens] = reduce(torch.add, group.each_choice(drows))
            for j, row in enumerate(group.each_choice(results[index])):
                dweights[group.tokens, j] = (row * dout[group.tokens]).sum(-1).to(weights.dtype)

        ctx.dispatcher.run("backward", rows_to_send, compute, receive)
        return dx, dweights, None, None, None, *dexperts
