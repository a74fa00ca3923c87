"""Which rows of a group of tokens go to which rank, and the all-to-all that carries them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from leyden.ops import Routing
from leyden.ops.experts.sort import sort_by_expert
from leyden.parallel.collectives import gather_rows
from leyden.parallel.mesh import Mesh

# The functional collectives (what torch.distributed traces and DTensor calls): the result of an exchange is then the
# value of an op, which selective checkpointing can keep; dist.all_to_all_single writes into an argument.
_all_to_all = torch.ops._c10d_functional.all_to_all_single
_wait = torch.ops._c10d_functional.wait_tensor


@dataclass
class PendingAllToAll:
    """The handle of an asynchronous all-to-all: it keeps the rows sent and the rows to come until :meth:`wait`."""

    sent: torch.Tensor
    received: torch.Tensor

    def wait(self) -> torch.Tensor:
        """The rows received: the host waits on gloo, the current stream on NCCL."""
        return _wait(self.received)


def start_all_to_all(
    x: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
) -> PendingAllToAll:
    """Start sending rows of x [sum(sent), ...], the first ``sent[0]`` to rank 0 and so on.

    The handle's :meth:`PendingAllToAll.wait` gives [sum(received), ...].
    """
    x = x.contiguous()
    return PendingAllToAll(x, _all_to_all(x, list(received), list(sent), group.group_name))


@dataclass(frozen=True)
class TokenGroup:
    """Some of a rank's tokens, n of them; a row is one kept assignment of a token to an expert.

    Attributes:
        tokens: which of the rank's they are.
        assignment: [rows] int64, the kept ones of the rank's assignments ``token * k + j``, by expert.
        row_of: [n, k] int64, the row of every assignment; 0 where dropped.
        kept: [n, k] bool, or None for all.
        sent: rows to every rank of the ``ep`` group.
        received: rows from each of them.
        to_peers: rows to every rank of the ``etp`` group: those that were received, and none to this rank itself.
        from_peers: rows from each of them.
        experts: [R] int64, the local expert of every row then at hand: this rank's own, then its peers'.
    """

    tokens: slice
    assignment: torch.Tensor
    row_of: torch.Tensor
    kept: torch.Tensor | None
    sent: list[int]
    received: list[int]
    to_peers: list[int]
    from_peers: list[int]
    experts: torch.Tensor

    @property
    def token(self) -> torch.Tensor:
        """[rows] int64, the token of every row."""
        return self.assignment // self.row_of.shape[1]

    def each_choice(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """From rows [rows, D] those of every token's first choice, then of its second, ...: k times [n, D].

        In float32 (float64 for float64), zeros where an assignment was dropped.
        """
        wide = torch.promote_types(rows.dtype, torch.float32)
        for j in range(self.row_of.shape[1]):
            if not len(rows):
                yield rows.new_zeros(len(self.row_of), rows.shape[1], dtype=wide)
                continue
            chosen = rows.index_select(0, self.row_of[:, j]).to(wide)
            yield chosen if self.kept is None else chosen.masked_fill_(~self.kept[:, j, None], 0)


def token_groups(routing: Routing, mesh: Mesh, experts_per_rank: int) -> list[TokenGroup]:
    """Cut this rank's tokens into groups, and learn from the other ranks how many rows of each will come.

    The kept assignments of every expert are counted, the counts go to the ranks that have the expert, and these share
    them with their peers. The host waits once, for the sizes.

    Args:
        routing: of this rank's tokens over all experts.
        mesh: of the ranks, which all call this.
        experts_per_rank: how many experts a rank of the ``ep`` group has.
    """
    num_groups, ep, etp, me = mesh.plan.settings.token_groups, mesh.size("ep"), mesh.size("etp"), mesh.index("etp")
    num_tokens, top_k = routing.experts.shape
    bounds = [num_tokens * index // num_groups for index in range(num_groups + 1)]
    spans = [slice(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]
    orders, rows_of, counts = zip(*(_sorted(routing, span, ep * experts_per_rank) for span in spans), strict=True)
    sent, arriving = _exchange_counts(torch.stack(counts), mesh, experts_per_rank)
    sizes = torch.cat([sent.sum(-1), arriving.sum(-1).flatten(1)], dim=1).tolist()
    local = torch.arange(experts_per_rank, device=sent.device).repeat(etp * ep)
    groups = []
    for index, (span, order, row_of) in enumerate(zip(spans, orders, rows_of, strict=True)):
        to_ranks, from_ranks = sizes[index][:ep], sizes[index][ep:]
        per_peer = [sum(from_ranks[peer * ep : (peer + 1) * ep]) for peer in range(etp)]
        own_first = torch.cat([arriving[index, me : me + 1], arriving[index, :me], arriving[index, me + 1 :]])
        groups.append(
            TokenGroup(
                tokens=span,
                assignment=span.start * top_k + order[: sum(to_ranks)],
                row_of=row_of,
                kept=None if routing.kept is None else routing.kept[span],
                sent=to_ranks,
                received=from_ranks[me * ep : (me + 1) * ep],
                to_peers=[0 if peer == me else per_peer[me] for peer in range(etp)],
                from_peers=[0 if peer == me else rows for peer, rows in enumerate(per_peer)],
                experts=local.repeat_interleave(own_first.flatten(), output_size=sum(from_ranks)),
            )
        )
    return groups


def _sorted(routing: Routing, span: slice, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The assignments of a group of n tokens sorted by expert, the dropped ones last.

    Returns:
        order: [n k] int64, the assignments in that order.
        row_of: [n, k] int64, its inverse; 0 where dropped.
        counts: [E] int64, the kept ones of every expert.
    """
    experts, kept = routing.experts[span], None if routing.kept is None else routing.kept[span]
    order, row_of, ends = sort_by_expert(experts, kept, num_experts)
    row_of, counts = row_of.view(experts.shape), ends.long().diff(prepend=order.new_zeros(1))
    return order, row_of if kept is None else row_of.masked_fill(~kept, 0), counts


def _exchange_counts(counts: torch.Tensor, mesh: Mesh, experts_per_rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From this rank's [groups, E] to what it sends and what will be at hand here.

    Returns:
        sent: [groups, ep, experts a rank], rows by receiver and its experts.
        arriving: [groups, etp, ep, experts a rank], rows of this rank's experts, by the ETP rank that receives them
            from an EP rank.
    """
    ep, etp = mesh.groups["ep"], mesh.groups["etp"]
    sent = counts.unflatten(1, (-1, experts_per_rank))
    received = sent.transpose(0, 1).contiguous()
    if ep is not None:
        received = start_all_to_all(received, [1] * len(received), [1] * len(received), ep).wait()
    received = received[None] if etp is None else gather_rows(received[None], 0, etp)
    return sent, received.permute(2, 0, 1, 3)
