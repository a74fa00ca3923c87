"""LASP+: lightning attention over a row that ranks share (arXiv 2501.08313, section 3), with decay and documents.

Each rank has one stretch of the row. Its tokens attend to each other as if the row began with them; what they miss is
what the tokens before the stretch have left of the document that the stretch continues, a state P [H, K, V]:

    o_t += exp(-slope (t + 1)) P^T q_t        for token t of the stretch, in its first document

Rank j contributes to it the state S_j of the document that its stretch does not finish, and all contribute at once:

    S_j = sum_t exp(-slope (stop_j - 1 - t)) k_t v_t^T        t of the stretch's last document
    P_r = sum_j exp(-slope (start_r - stop_j)) S_j            over the ranks j < r within the document of start_r

which is the paper's prefix sum, written out. The backward is the same with time reversed: the gradient of P_r is
``sum_t exp(-slope (t + 1)) q_t do_t^T``, and S_j's is the sum of those of the ranks behind it within its document. So a
layer takes one all-gather of [H, K, V] in its forward and one in its backward, however long the row; which ranks share
a document is known from bounds on the host. Parts may be unequal or empty.

What overlaps: S_j is computed first and sent while the rank's own attention is computed, and the gradient of P_r is
sent while the gradient of that attention is computed. Autograd runs what was recorded later first, so the two halves
of the exchange are two nodes, recorded on either side of the attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from leyden.model import RowPart
from leyden.model.forward_context import ForwardContext
from leyden.ops import lightning_attention
from leyden.parallel.mesh import Mesh

# Collectives that begin in one call and end in another, as functions of values; they have no public name.
_functional: Any = torch.ops._c10d_functional

_CHUNK = 4096
"""Tokens whose outer products one matrix product sums, which bounds its temporaries; chunks are summed in float32."""


class LaspPlus:
    """What :func:`leyden.model.mixers.lightning.scan` is to one process, to the context ranks of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        group = mesh.groups["cp"]
        assert group is not None, "one context rank has nobody to exchange states with"
        self._group = group

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor,
        state: torch.Tensor | None,
        context: ForwardContext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend within the row, of which this rank holds a part.

        Args:
            q, k: [1, T', H, K], the tokens of this rank's part.
            v: [1, T', H, V].
            slopes: [H], of these heads.
            state: None; a shared row has no cache.
            context: with the part.

        Returns:
            [1, T', H, V] in the dtype of q, and the state [1, H, K, V] after the part's last token, which has no
            gradient.

        Raises:
            RuntimeError: a state to continue from, or no part.
        """
        part = own_part(state, context)
        neighbours, wide = Neighbours.of(part), torch.promote_types(q.dtype, torch.float32)
        tokens, slopes = q.shape[1], slopes.to(wide)
        first, last = neighbours.continued, tokens - neighbours.unfinished
        age = torch.arange(tokens, dtype=wide, device=q.device)[:, None]
        exchange = _Exchange(neighbours, slopes, self._group)
        left = _Summary.apply(k[0, last:], v[0, last:], torch.exp(-slopes * age[: tokens - last].flip(0)))
        sent = _Send.apply(left, exchange)
        out, states = lightning_attention(q, k, v, slopes, None, context.cu_seqlens)
        entry = _Receive.apply(sent, exchange)
        missed = _Read.apply(q[0, :first], entry, torch.exp(-slopes * (age[:first] + 1)))
        after = states[-1:].detach().clone()  # a view would keep all
        if len(part.documents()) == 2:
            after += entry.detach() * torch.exp(-slopes * tokens)[:, None, None]
        return torch.cat([out[0, :first] + missed, out[0, first:]])[None], after


def own_part(state: torch.Tensor | None, context: ForwardContext) -> RowPart:
    """This rank's part of a shared row.

    Raises:
        RuntimeError: a state to continue from, or no part.
    """
    if state is not None or context.part is None:
        raise RuntimeError(
            "LASP+ shares one packed row among context ranks and continues no cache: generate with cp = 1, "
            "or give the model a row without a cache."
        )
    return context.part


@dataclass(frozen=True)
class Neighbours:
    """What a rank has of documents that go on beyond its part, and who has the rest of them.

    Attributes:
        continued: tokens of the part's first document, if it began before the part; else 0.
        unfinished: tokens of the part's last document, if it goes on behind the part; else 0.
        before: of every rank before this one with a part in the document that continues here, its number and how many
            tokens lie between its end and the beginning of this part.
        behind: of every rank behind this one that holds more of the unfinished document, its number and how many
            tokens lie between the end of this part and its beginning.
    """

    continued: int
    unfinished: int
    before: tuple[tuple[int, int], ...]
    behind: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, part: RowPart) -> "Neighbours":
        """From the bounds of the row's parts and documents."""
        start, stop, bounds = part.start, part.stop, part.cu_seqlens
        inside, at = part.documents(), range(len(part.bounds) - 1)
        begin = max(bound for bound in bounds if bound <= start)
        end = min(bound for bound in bounds if bound >= stop)
        return cls(
            inside[1] if begin < start else 0,
            inside[-1] - inside[-2] if end > stop else 0,
            tuple((j, start - part.bounds[j + 1]) for j in at[: part.rank] if begin < part.bounds[j + 1]),
            tuple((j, part.bounds[j] - stop) for j in at[part.rank + 1 :] if part.bounds[j] < end),
        )


class _Exchange:
    """One layer's exchange of states, there and back."""

    def __init__(self, neighbours: Neighbours, slopes: torch.Tensor, group: dist.ProcessGroup) -> None:
        self.neighbours = neighbours
        self._slopes, self._group = slopes, group

    def begin(self, mine: torch.Tensor) -> torch.Tensor:
        """Give [H, K, V] to all ranks: [ranks H, K, V], which are there after :meth:`finish` alone."""
        return _functional.all_gather_into_tensor(mine.contiguous(), self._group.size(), self._group.group_name)

    def finish(self, everyone: torch.Tensor, neighbours: tuple[tuple[int, int], ...]) -> torch.Tensor:
        """The sum of what the neighbours gave, decayed over the tokens between: [H, K, V]."""
        states = _functional.wait_tensor(everyone).unflatten(0, (self._group.size(), -1))
        total = torch.zeros_like(states[0])
        for rank, tokens in neighbours:
            total.addcmul_(states[rank], torch.exp(-self._slopes * tokens)[:, None, None])
        return total


class _Send(torch.autograd.Function):
    """The exchange's first half in the forward, its last in the backward; nobody reads what is between them."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, exchange: _Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        return exchange.begin(left)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.exchange.finish(grads[0], ctx.exchange.neighbours.behind), None


class _Receive(torch.autograd.Function):
    """The exchange's last half in the forward, its first in the backward."""

    @staticmethod
    def forward(ctx: Any, sent: torch.Tensor, exchange: _Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        return exchange.finish(sent, exchange.neighbours.before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.exchange.begin(grads[0]), None


class _Summary(torch.autograd.Function):
    """``sum_t weights_t x_t y_t^T``: x [n, H, K], y [n, H, V], weights [n, H] to [H, K, V], as wide as the weights."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, y, weights)
        return _summary(x, y, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, weights = ctx.saved_tensors
        return _reading(y, grads[0].mT, weights), _reading(x, grads[0], weights), None


class _Read(torch.autograd.Function):
    """``weights_t state^T x_t``: x [n, H, K], state [H, K, V], weights [n, H] to [n, H, V] in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, state: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, state, weights)
        return _reading(x, state, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, state, weights = ctx.saved_tensors
        return _reading(grads[0], state.mT, weights), _summary(x, grads[0], weights), None


def _summary(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = weights.new_zeros(x.shape[1], x.shape[2], y.shape[2])
    narrow = _product_dtype(x, weights)
    for xs, ys, ws in zip(*(of.split(_CHUNK) for of in (x, y, weights)), strict=True):
        weighted = xs.to(narrow) * ws[..., None].to(narrow)
        total += weighted.permute(1, 2, 0) @ ys.to(narrow).transpose(0, 1)
    return total


def _reading(x: torch.Tensor, state: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    narrow = _product_dtype(x, weights)
    read = (x.to(narrow).transpose(0, 1) @ state.to(narrow)).transpose(0, 1)
    return (read * weights[..., None]).to(x.dtype)


def _product_dtype(x: torch.Tensor, weights: torch.Tensor) -> torch.dtype:
    """Of matrix products: bfloat16 stays, and float16 would overflow."""
    return x.dtype if x.dtype == torch.bfloat16 else weights.dtype
