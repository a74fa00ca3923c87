"""The probabilities of a block of queries, and the gradients of its scores: in PyTorch or natively.

Scores are float32 (float64 for float64) from the products on. Rounded to bfloat16, a score s would be off by up to
s / 512, and its probability by that share of itself.
"""

import torch

from leyden.ops.attention_blocks import Block, take
from leyden.ops.native import LANES, call
from leyden.ops.softmax_attention import causal


def scores_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None = None,
    dout: torch.Tensor | None = None,
    *,
    native: bool,
    softcap: float | None = None,
) -> "Scores":
    """The body to take.

    Args:
        q: [N, G, T, D].
        k: [N, 1, S, D].
        v: like k; in a backward.
        dout: like q; in a backward.
        native: whether C++ computes what it is faster at; not with a cap.
        softcap: of the scores; None for none.
    """
    if softcap is not None:
        return _CappedScores(q, k, v, dout, held=torch.promote_types(q.dtype, torch.float32), softcap=softcap)
    if native and q.shape[-1] % LANES == 0 and causal.products_pay(q.dtype):
        return _FusedScores(q, k, v, dout, held=q.dtype)
    return (_NativeScores if native else Scores)(q, k, v, dout, held=torch.promote_types(q.dtype, torch.float32))


class Scores:
    """In PyTorch.

    Args:
        q, k, v, dout: as in :func:`scores_of`.
        held: the dtype in which products take them.
    """

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor | None,
        dout: torch.Tensor | None,
        *,
        held: torch.dtype,
    ) -> None:
        self.dtype, self.scale = q.dtype, q.shape[-1] ** -0.5
        self.q, self.k = q.to(held), k.to(held)
        self.v, self.dout = (None if x is None else x.to(held) for x in (v, dout))

    def probabilities(self, n: int, block: Block) -> torch.Tensor:
        """[G R, W] in the dtype of q, zero where a query may not look."""
        return self._softmax(self._products(self.q, self.k, n, block), block)

    def gradients(self, n: int, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """The probabilities p, and ``p (dp - rowsum(p dp)) scale`` where dp is ``dout v^T``; both [G R, W]."""
        assert self.dout is not None and self.v is not None, "only a backward asks for gradients"
        dp = self._products(self.dout, self.v, n, block)
        return self._differentiated(self._products(self.q, self.k, n, block), dp, block)

    def _products(self, rows: torch.Tensor, keys: torch.Tensor, n: int, block: Block) -> torch.Tensor:
        return torch.mm(take(rows[n], block.rows), keys[n, 0, block.keys].t())

    def _softmax(self, scores: torch.Tensor, block: Block) -> torch.Tensor:
        return self._wide_softmax(scores, block).to(self.dtype)

    def _differentiated(
        self, scores: torch.Tensor, dp: torch.Tensor, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        p = self._wide_softmax(scores, block)
        delta = torch.linalg.vecdot(p, dp)[:, None]
        return p.to(self.dtype), dp.sub_(delta).mul_(p).mul_(self.scale).to(self.dtype)

    def _wide_softmax(self, scores: torch.Tensor, block: Block) -> torch.Tensor:
        """In place."""
        by_row = scores.mul_(self.scale).view(-1, block.seen.shape[1], scores.shape[-1])
        by_row[..., by_row.shape[-1] - block.hidden.shape[1] :].masked_fill_(
            block.hidden.to(scores.device), -torch.inf
        )  # of none, none
        return torch.softmax(scores, dim=-1, out=scores)


class _CappedScores(Scores):
    """Of scores s that count as ``c tanh(s / c)``: ``scale`` is c here, and multiplies the tanh."""

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor | None,
        dout: torch.Tensor | None,
        *,
        held: torch.dtype,
        softcap: float,
    ) -> None:
        super().__init__(q, k, v, dout, held=held)
        self._inner, self.scale = self.scale / softcap, softcap

    def _softmax(self, scores: torch.Tensor, block: Block) -> torch.Tensor:
        return super()._softmax(scores.mul_(self._inner).tanh_(), block)

    def _differentiated(
        self, scores: torch.Tensor, dp: torch.Tensor, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """d tanh(x) / dx = 1 - tanh(x)^2."""
        tanh = scores.mul_(self._inner).tanh_()
        p = self._wide_softmax(tanh.clone(), block)
        delta = torch.linalg.vecdot(p, dp)[:, None]
        slope = tanh.square_().neg_().add_(1)
        return p.to(self.dtype), dp.sub_(delta).mul_(p).mul_(slope).mul_(self.scale * self._inner).to(self.dtype)


class _NativeScores(Scores):
    """The products by a matrix library in float32, and one pass of C++ over them."""

    def _softmax(self, scores: torch.Tensor, block: Block) -> torch.Tensor:
        p = self._like(scores)
        call("leyden_softmax", self.dtype, scores, None, *self._sizes(scores, block), p, None)
        return p

    def _differentiated(
        self, scores: torch.Tensor, dp: torch.Tensor, block: Block
    ) -> tuple[torch.Tensor, torch.Tensor]:
        p, ds = self._like(scores), self._like(dp)
        call("leyden_softmax", self.dtype, scores, dp, *self._sizes(scores, block), p, ds)
        return p, ds

    def _like(self, wide: torch.Tensor) -> torch.Tensor:
        """Where the results go: over what they come from where that has room."""
        return wide if self.dtype == wide.dtype else torch.empty_like(wide, dtype=self.dtype)

    def _sizes(self, scores: torch.Tensor, block: Block) -> tuple[torch.Tensor, float, int, int, int]:
        rows, width = scores.shape
        return block.seen, self.scale, rows, block.seen.shape[1], width


class _FusedScores(Scores):
    """The products as well in C++, a few queries at a time, so that their scores never leave the cache."""

    def probabilities(self, n: int, block: Block) -> torch.Tensor:
        q, k = take(self.q[n], block.rows), self.k[n, 0, block.keys]
        p = q.new_empty(len(q), len(k))
        call("leyden_attention_probabilities", self.dtype, q, k, *self._sizes(q, k, block), p)
        return p

    def gradients(self, n: int, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.dout is not None and self.v is not None, "only a backward asks for gradients"
        q, k, dout = take(self.q[n], block.rows), self.k[n, 0, block.keys], take(self.dout[n], block.rows)
        p, ds = q.new_empty(2, len(q), len(k))
        given = (q, k, dout, self.v[n, 0, block.keys])
        call("leyden_attention_gradients", self.dtype, *given, *self._sizes(q, k, block), p, ds)
        return p, ds

    def _sizes(self, q: torch.Tensor, k: torch.Tensor, block: Block) -> tuple[torch.Tensor, float, int, int, int, int]:
        return block.seen, self.scale, len(q), block.seen.shape[1], len(k), q.shape[1]
