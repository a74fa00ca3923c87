"""LASP+ where decays follow from the data: gated linear attention over a row that ranks share.

As in ``lasp.py``, each rank has one stretch of the row, and what it misses is what the tokens before have left of the
document that the stretch continues, a state P [H, K, V]. Nobody knows another rank's decays, so a rank sends, beside
the state S_j of the document that its stretch does not finish, the sum G_j [H, K] of that document's log decays there:

    S_j = sum_t Diag(exp(g_{t+1} + ... + g_stop)) k_t v_t^T        t of the stretch's last document
    P_r = sum_j Diag(exp(G_{j+1} + ... + G_{r-1})) S_j             over the ranks j < r within the document of start_r

One all-gather of [H, K, V + 1] in the forward, however long the row. P_r is then the initial state of the stretch's
first document. The gradient of what was sent is the sum over the ranks that read it: one reduce-scatter.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from leyden.model.forward_context import ForwardContext
from leyden.ops import gated_linear_attention
from leyden.parallel.collectives import gather_rows, reduce_scatter_rows
from leyden.parallel.mesh import Mesh
from leyden.parallel.sequence.lasp import Neighbours, own_part


class GatedLasp:
    """What :func:`leyden.model.mixers.hgrn2.scan` is to one process, to the context ranks of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        group = mesh.groups["cp"]
        assert group is not None, "one context rank has nobody to exchange states with"
        self._group = group

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        log_decay: torch.Tensor,
        state: torch.Tensor | None,
        context: ForwardContext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`leyden.parallel.sequence.lasp.LaspPlus.__call__`; ``log_decay`` [1, T', H, K], float32 or wider,
        takes the place of slopes."""
        part = own_part(state, context)
        neighbours = Neighbours.of(part)
        last = q.shape[1] - neighbours.unfinished
        left = _what_is_left(k[0, last:], v[0, last:], log_decay[0, last:])
        entry = _Entry.apply(left, tuple(rank for rank, _ in neighbours.before), self._group)
        initial = pad(entry[None], (0, 0, 0, 0, 0, 0, 0, len(part.documents()) - 2))
        out, states = gated_linear_attention(q, k, v, log_decay, initial, context.cu_seqlens)
        return out, states[-1:].detach().clone()  # a view would keep all


def _what_is_left(k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    """Of tokens [n, H, *], their state behind the last and the sum of their log decays: [H, K, V + 1]."""
    later = pad(log_decay[1:], (0, 0, 0, 0, 0, min(1, len(log_decay)))).flip(0).cumsum(0).flip(0)
    weighted = k.to(log_decay.dtype) * later.exp()
    state = weighted.permute(1, 2, 0) @ v.to(log_decay.dtype).transpose(0, 1)
    return torch.cat([state, log_decay.sum(0)[..., None]], dim=-1)


class _Entry(torch.autograd.Function):
    """What the ranks ``before``, in their order, have left of a document: [H, K, V + 1] of every rank to [H, K, V]."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, before: tuple[int, ...], group: dist.ProcessGroup) -> torch.Tensor:
        everyone = gather_rows(left[None], 0, group)
        ctx.save_for_backward(everyone)
        ctx.before, ctx.group = before, group
        return _added_up(everyone, before)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (everyone,) = ctx.saved_tensors
        dleft = torch.zeros_like(everyone)
        if ctx.before:
            with torch.enable_grad():
                leaf = everyone.detach().requires_grad_()
                (dleft,) = torch.autograd.grad(_added_up(leaf, ctx.before), leaf, grads[0])
        return reduce_scatter_rows(dleft, 0, ctx.group)[0], None, None


def _added_up(everyone: torch.Tensor, before: tuple[int, ...]) -> torch.Tensor:
    total = torch.zeros_like(everyone[0, ..., :-1])
    passed = torch.zeros_like(everyone[0, ..., -1:])
    for rank in reversed(before):
        total = total + passed.exp() * everyone[rank, ..., :-1]
        passed = passed + everyone[rank, ..., -1:]
    return total
