"""The vocabulary divided over tensor ranks: embedding, output projection and loss (arXiv 1909.08053, section 3).

Of V words rank r has those from ``V r // tp`` to ``V (r + 1) // tp - 1``; parts may be unequal. Logits exist for a
chunk of tokens at a time, this rank's words alone, and what ranks tell each other of them is three numbers a token.
"""

import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import embedding

from leyden.model.losses import at_temperature
from leyden.ops.cross_entropy.autograd import SummedNll, TokenLosses, TokenNll, Upstream, constant_weights
from leyden.ops.cross_entropy.portable import cap_logits
from leyden.ops.gradients import backward_may_follow
from leyden.parallel.collectives import gather_rows, reduce_scatter, reduce_scatter_rows


class VocabularyEmbedding(nn.Module):
    """Rows of this rank's words, zeros for others, added up over ranks: ``weight`` [V', D], of words from ``first``."""

    def __init__(self, weight: torch.Tensor, first: int, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight, self._first, self._group = weight, first, group

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[1, T], the same on every tensor rank, to [1, T / tp, D] of this rank's own tokens."""
        index = tokens - self._first
        elsewhere = (index < 0) | (index >= self.weight.shape[0])
        rows = embedding(index.masked_fill(elsewhere, 0), self.weight)
        return reduce_scatter(rows.masked_fill(elsewhere.unsqueeze(-1), 0), 1, self._group)


class VocabularyProjection(nn.Module):
    """From hidden states of own tokens to their share of the loss: ``weight`` [V', D], of words from ``first``.

    Args:
        weight: of this rank's words.
        first: the first of them.
        vocab_size: V.
        group: the tensor ranks.
        softcap: of the logits, as of :class:`leyden.model.losses.OutputProjection`.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        first: int,
        vocab_size: int,
        group: dist.ProcessGroup,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.softcap, self._first, self._group = weight, softcap, first, group
        self._widest = -(-vocab_size // group.size())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raises RuntimeError: logits are not to be had where ranks divide the vocabulary."""
        raise RuntimeError(
            "tensor ranks hold logits of their own words alone; evaluate the model with [parallel] tp=1."
        )

    def token_nll(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`leyden.ops.linear_token_nll` of own tokens.

        Args:
            hidden: [T / tp, D], of this rank's own tokens.
            labels: [T], of all tensor ranks' tokens.
            temperature: what the logits are divided by.

        Returns:
            ``nll`` and ``log_z``, [T / tp] each, of own tokens.
        """
        hidden, softcap = at_temperature(hidden, self.softcap, temperature)
        return TokenNll.apply(functools.partial(self._body, softcap), hidden, self.weight, labels)

    def cross_entropy(
        self, hidden: torch.Tensor, labels: torch.Tensor, z_loss: float, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:func:`leyden.ops.linear_cross_entropy` of own tokens: shares, which add up over ranks to the row's.

        Args:
            hidden, labels: as of :meth:`token_nll`.
            z_loss: as in the op.
            weights: [T / tp], of own tokens; None: 1 each.

        The gradient is that of the sum of all ranks' shares, which every rank scales by the same factor.
        """
        weights, differentiate = constant_weights(weights, hidden), backward_may_follow(hidden, self.weight)
        body = functools.partial(self._body, self.softcap)
        return SummedNll.apply(body, hidden, self.weight, labels, weights, z_loss, differentiate)

    def _body(
        self,
        softcap: float | None,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        upstream: Upstream | None,
    ) -> TokenLosses:
        """Chunks of rows as in the op's portable body, in which the ranks meet; results are of own tokens."""
        group, dtype = self._group, torch.promote_types(hidden.dtype, torch.float32)
        rows = gather_rows(hidden, 0, group)
        drows = None if upstream is None else torch.empty_like(rows)
        dweight = None if upstream is None else torch.zeros_like(weight, dtype=dtype)
        if upstream is not None:  # of the other ranks' tokens too, for this rank's words
            dnll, dlog_z = (None if x is None else gather_rows(x, 0, group) for x in upstream[:2])
            upstream = Upstream(dnll, dlog_z, upstream.z_loss)
        nll, z = rows.new_empty(2, rows.shape[0], dtype=dtype)
        # As many chunks on every rank, whatever its share of the words: they meet in each.
        step = max(1, _chunk_elements(hidden.device) // self._widest)
        narrow = rows.new_empty(min(step, rows.shape[0]), weight.shape[0])
        wide = torch.empty_like(narrow, dtype=dtype)
        for start in range(0, rows.shape[0], step):
            at = slice(start, min(start + step, rows.shape[0]))
            raw = torch.mm(rows[at], weight.t(), out=narrow[: at.stop - start])
            logits = wide[: at.stop - start].copy_(raw)
            slope = None if softcap is None else cap_logits(logits, softcap, slope=upstream is not None)
            words = _Words.of(logits, labels[at], self._first, group)
            valid = labels[at] >= 0
            nll[at], z[at] = (words.z - words.target).where(valid, 0), words.z.where(valid, 0)
            if upstream is None or drows is None or dweight is None:
                continue
            gradient = words.gradient(*upstream.factors(at, words.z, valid))
            dlogits = raw.copy_(gradient if slope is None else gradient.mul_(slope))
            torch.mm(dlogits, weight, out=drows[at])
            dweight += torch.mm(dlogits.t(), rows[at])
        own = slice(group.rank() * hidden.shape[0], (group.rank() + 1) * hidden.shape[0])
        if drows is None or dweight is None:
            return TokenLosses(nll[own], z[own])
        return TokenLosses(nll[own], z[own], reduce_scatter_rows(drows, 0, group), dweight.to(weight.dtype))


@dataclass(frozen=True)
class _Words:
    """The logits of R tokens for this rank's V' words, beside those that the other ranks have.

    Attributes:
        exponentials: [R, V'], ``exp(logit - top)``.
        top: [R], the largest logit of this rank's words.
        index: [R], the label's place among them, 0 where another rank has it.
        here: [R] bool, whether this rank has it.
        z: [R], ``logsumexp`` over the words of all ranks.
        target: [R], the label's logit, whichever rank has it.
    """

    exponentials: torch.Tensor
    top: torch.Tensor
    index: torch.Tensor
    here: torch.Tensor
    z: torch.Tensor
    target: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, labels: torch.Tensor, first: int, group: dist.ProcessGroup) -> "_Words":
        """From logits [R, V'], which are overwritten, and labels [R]; the ranks of ``group`` meet once."""
        index = labels - first
        here = (index >= 0) & (index < logits.shape[1])
        index = index.masked_fill(~here, 0)
        target = logits.gather(1, index[:, None]).squeeze(1).masked_fill(~here, 0)
        top = logits.amax(-1)
        exponentials = logits.sub_(top[:, None]).exp_()
        told = torch.stack([top, exponentials.sum(-1), target])
        tops, sums, targets = gather_rows(told[None], 0, group).unbind(1)
        return cls(exponentials, top, index, here, torch.logsumexp(tops + sums.log(), 0), targets.sum(0))

    def gradient(self, of_p: torch.Tensor, of_label: torch.Tensor) -> torch.Tensor:
        """[R, V'], the gradient of the logits, given the factors [R] of :meth:`Upstream.factors`; in place."""
        p = self.exponentials.mul_((torch.exp(self.top - self.z) * of_p)[:, None])
        return p.scatter_add_(1, self.index[:, None], (-of_label * self.here)[:, None])


def _chunk_elements(device: torch.device) -> int:
    """Logits that exist at once: 16 MB in float32 where they stay in a cache, more where a chunk must fill a GPU."""
    return 4 << 20 if device.type == "cpu" else 1 << 27
