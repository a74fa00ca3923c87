"""Ring attention over the context ranks: softmax attention of a packed row that no rank has whole.

Queries stay; keys and values go around the ring of ranks in one direction, and each rank attends to what is with it,
merging by log-sum-exp (Ring Attention, arXiv 2310.01889). The ring is over the whole packed row, and what a query sees
of a rank's keys is a range (MiniMax-01, arXiv 2501.08313, section 3: varlen ring attention): documents need no padding,
and keys that no query of a rank sees cost it nothing but their passing on. The backward sends keys and values around
once more. Their gradients follow, one rank behind, summed in float32 from rank to rank until they are home.

What overlaps: while a rank computes with a block, the next is on its way; in the backward so are the gradients of the
block before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from leyden.model.forward_context import ForwardContext
from leyden.ops import ranged_attention, ranged_attention_backward
from leyden.parallel.mesh import Mesh
from leyden.parallel.sequence.layout import RingStep, steps
from leyden.parallel.sequence.switch import Route, to_balanced, to_contiguous

_KEYS, _GRADIENTS = 0, 1
"""Tags of what travels, for back ends that tell messages apart by them."""


class RingAttention:
    """What :func:`leyden.model.mixers.softmax.attend` is to one process, to the context ranks of a mesh.

    Args:
        mesh: with more than one context rank.
        layout: of the row while it attends: ``balanced``, to which q, k and v are switched and from which the output is
            switched back, or ``contiguous``, as the row lies between the layers (for comparison).
    """

    def __init__(self, mesh: Mesh, layout: Literal["balanced", "contiguous"] = "balanced") -> None:
        group = mesh.groups["cp"]
        assert group is not None, "one context rank has nobody to exchange keys with"
        self._group, self._even = group, layout == "balanced"

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        context: ForwardContext,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Attend within the row, of which this rank holds a part.

        Args:
            q: [1, T', Hq, D], the tokens of this rank's part.
            k, v: [1, T', Hkv, D].
            context: with the part.
            window: how many keys a query sees at most; None: all before it. What no query of a rank sees is passed on
                without a product.
            softcap: of the scores, as of :func:`leyden.ops.softmax_attention`.

        Returns:
            [1, T', Hq, D] in the dtype of q.

        Raises:
            RuntimeError: keys of a cache, or no part.
        """
        part = context.part
        if part is None or k.shape[1] != q.shape[1]:
            raise RuntimeError(
                "ring attention shares one packed row among context ranks and continues no cache: generate with "
                "cp = 1, or give the model a row without a cache."
            )
        layout, seen = steps(part, self._even, q.device, window)
        ring = _Ring(self._group, layout.sizes, seen, softcap)
        if not self._even:
            return _RingAttention.apply(q[0], k[0], v[0], ring)[None]
        route, heads = Route.of(part, q.device), [x.shape[2] for x in (q, k, v)]
        rows = to_balanced(torch.cat([q[0], k[0], v[0]], dim=1), route, self._group)
        out = _RingAttention.apply(*rows.split(heads, dim=1), ring)
        return to_contiguous(out, route, self._group)[None]


@dataclass(frozen=True)
class _Ring:
    """Who holds how many keys, what this rank sees of them, and the cap of the scores."""

    group: dist.ProcessGroup
    sizes: list[int]
    seen: tuple[RingStep | None, ...]
    softcap: float | None

    def source(self, step: int) -> int:
        """Whose block is here at a step: one's own first, then that of the rank before."""
        return (self.group.rank() - step) % len(self.sizes)

    def pass_on(self, block: torch.Tensor, step: int, tag: int) -> "_Passing":
        """Send [2, S, ...], the block at ``step``, to the next rank, and receive the one of ``step + 1``."""
        arriving = block.new_empty(2, self.sizes[self.source(step + 1)], *block.shape[2:])
        rank, size = self.group.rank(), len(self.sizes)
        pairs = ((dist.isend, block, (rank + 1) % size), (dist.irecv, arriving, (rank - 1) % size))
        operations = [
            dist.P2POp(operation, tensor, group=self.group, group_peer=peer, tag=tag)
            for operation, tensor, peer in pairs
            if tensor.numel()
        ]
        return _Passing(arriving, block, dist.batch_isend_irecv(operations) if operations else [])

    def around(self, block: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Every step and the block that is here, while the next one is on its way."""
        for step in range(len(self.sizes) - 1):
            passing = self.pass_on(block, step, _KEYS)
            yield step, block
            block = passing.wait()
        yield len(self.sizes) - 1, block


@dataclass(frozen=True)
class _Passing:
    """A block on its way here, and the one on its way from here, which must live as long."""

    arriving: torch.Tensor
    leaving: torch.Tensor
    works: list[dist.Work]

    def wait(self) -> torch.Tensor:
        """What has arrived."""
        for work in self.works:
            work.wait()
        return self.arriving


class _RingAttention(torch.autograd.Function):
    """q [T, Hq, D], k and v [T, Hkv, D] of this rank's tokens in the ring's layout."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: _Ring) -> torch.Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = q.new_zeros(q.shape, dtype=wide)
        lse = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float64)  # else all of a row would be off by its rounding
        for step, block in ring.around(torch.stack([k, v])):
            seen = ring.seen[ring.source(step)]
            if seen is not None:
                given = (q, block[0], block[1], seen.first, seen.last)
                _merge(out, lse, *ranged_attention(*given, softcap=ring.softcap))
        ctx.save_for_backward(q, k, v, out, lse)  # in float32, as the backward subtracts delta from what is close to it
        ctx.ring = ring
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        ring: _Ring = ctx.ring
        dout = grads[0].contiguous()
        delta = (dout.to(out.dtype) * out).sum(-1)
        dq = torch.zeros_like(q, dtype=out.dtype)
        own: torch.Tensor | None = None
        passing: _Passing | None = None
        for step, block in ring.around(torch.stack([k, v])):
            seen = ring.seen[ring.source(step)]
            if seen is None:
                gradients = torch.zeros_like(block, dtype=out.dtype)
            else:
                given = (dout, q, block[0], block[1], lse, delta, seen.first, seen.last)
                more, *of_block = ranged_attention_backward(*given, whole=seen.whole, softcap=ring.softcap)
                dq += more
                gradients = torch.stack(of_block)
            if own is None:  # those of one's own keys are at home, and what other ranks add comes last
                own = gradients
                continue
            if passing is not None:
                gradients += passing.wait()
            passing = ring.pass_on(gradients, step, _GRADIENTS)
        assert own is not None and passing is not None, "a ring has two ranks at least"
        own += passing.wait()
        return dq.to(q.dtype), own[0].to(k.dtype), own[1].to(v.dtype), None


def _merge(out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Add attention to other keys to ``out`` [T, H, D] and ``lse`` [T, H] float64, in place."""
    total = torch.logaddexp(lse, more_lse)
    finite = total.masked_fill(total == -torch.inf, 0)  # a query that has seen nothing yet
    shares = (torch.exp(x - finite)[..., None].to(out.dtype) for x in (lse, more_lse))
    out.mul_(next(shares)).addcmul_(more, next(shares))
    lse.copy_(total)
