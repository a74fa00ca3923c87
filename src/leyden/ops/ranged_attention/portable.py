"""Attention over ranges of keys in plain PyTorch, a block of queries at a time.

A block meets the keys from the first that one of its queries sees to the last, in one matrix product a key head.
Scores, the softmax, the output and the gradients of the scores are float32; what follows is multiplied in the dtype of
the inputs (float16 in float32, where it cannot overflow). The output is not one of rounded probabilities, since the
backward subtracts its product with dO from dP, to which it may be close. Blocks that see nothing cost nothing.

Shapes: N key heads, G query heads share one, R queries in a block, W keys that it meets.
"""

import functools
from collections.abc import Iterator

import torch

from leyden.ops.attention_blocks import Block, apart_if_not_finite, by_key_head, by_position, cut_blocks, put, take
from leyden.ops.choices import RANGED_SCORES

_SCORES_BYTES = RANGED_SCORES.here


def ranged_attention_portable(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention`."""
    heads, wide = k.shape[1], torch.promote_types(q.dtype, torch.float32)
    grouped, keys, values = (_by_key_head(x, heads) for x in (q, k, v))
    out = torch.zeros(grouped.shape, dtype=wide, device=q.device)
    lse = torch.full_like(out[..., :1], -torch.inf)
    wide_q, wide_k, wide_v = (x.to(wide) for x in (grouped, keys, values))

    def attend(blocks: Iterator[Block]) -> tuple[torch.Tensor, ...]:
        for block in blocks:
            hidden = block.hidden.to(q.device)
            for n in range(heads):
                scores = _scores(wide_q[n], wide_k[n, 0], block, softcap)
                p, total = _softmax(_hide(scores, hidden))
                put(out[n], block.rows, torch.mm(p, wide_v[n, 0, block.keys]))
                put(lse[n], block.rows, total)
        return (out,)

    first, last = first.cpu(), last.cpu()
    plan = functools.partial(cut_blocks, first, last, len(k), _SCORES_BYTES // 4 // grouped.shape[1])
    apart_if_not_finite(plan, first, attend)
    return _by_position(out), _by_position(lse).squeeze(-1)


def ranged_attention_backward_portable(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    whole: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.ranged_attention_backward`."""
    heads, wide, scale = k.shape[1], torch.promote_types(q.dtype, torch.float32), q.shape[2] ** -0.5
    grouped, keys, values, douts = (_by_key_head(x, heads) for x in (q, k, v, dout))
    lses, deltas = (_by_key_head(x[..., None], heads) for x in (lse, delta))
    dq, dk, dv = (torch.empty(x.shape, dtype=wide, device=q.device) for x in (grouped, keys, values))
    wide_q, wide_k, wide_v = grouped.to(wide), keys.to(wide), values.to(wide)

    def differentiate(blocks: Iterator[Block]) -> tuple[torch.Tensor, ...]:
        for total in (dq, dk, dv):
            total.zero_()
        for block in blocks:
            rows, seen, hidden = block.rows, block.keys, block.hidden.to(q.device)
            for n in range(heads):
                scores = _scores(wide_q[n], wide_k[n, 0], block, softcap)
                slope = scale if softcap is None else (scores / softcap).square_().neg_().add_(1).mul_(scale)
                p, total = _softmax(_hide(scores, hidden))
                here = own[rows].repeat(len(grouped[n]))[:, None]
                p.mul_(torch.exp(total - take(lses[n], rows)).masked_fill_(here | (total == -torch.inf), 1))
                dout_rows = take(douts[n], rows)
                dp = torch.mm(dout_rows.to(wide), wide_v[n, 0, seen].t())
                dp.sub_(take(deltas[n], rows).masked_fill(here, 0))
                for _ in range(2 if whole is not None else 0):  # again for what rounding has left of the sum
                    dp.sub_(torch.linalg.vecdot(p, dp)[:, None].masked_fill_(~here, 0))
                dv[n, 0, seen] += torch.mm(p.to(keys.dtype).t(), dout_rows)
                ds = dp.mul_(p).mul_(slope).to(keys.dtype)
                put(dq[n], rows, torch.mm(ds, keys[n, 0, seen]))
                dk[n, 0, seen] += torch.mm(ds.t(), take(grouped[n], rows))
        return dq, dk, dv

    first, last = first.cpu(), last.cpu()
    own = torch.zeros(len(q), dtype=torch.bool, device=q.device) if whole is None else whole.to(q.device)
    plan = functools.partial(cut_blocks, first, last, len(k), _SCORES_BYTES // 4 // grouped.shape[1])
    apart_if_not_finite(plan, first, differentiate)
    return _by_position(dq), _by_position(dk), _by_position(dv)


def _by_key_head(x: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[T, H, D] to [N, G, T, D], in the dtype of products."""
    return by_key_head((x.float() if x.dtype == torch.float16 else x)[None], key_heads)


def _by_position(x: torch.Tensor) -> torch.Tensor:
    """[N, G, T, D] to [T, H, D]."""
    return by_position(x, x.shape[0] * x.shape[1])[0]


def _scores(q: torch.Tensor, k: torch.Tensor, block: Block, softcap: float | None) -> torch.Tensor:
    """[G R, W], of every query and key."""
    scores = torch.mm(take(q, block.rows), k[block.keys].t()).mul_(q.shape[-1] ** -0.5)
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _hide(scores: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Minus infinity where a query may not look, in place; ``hidden`` is that of the block, on the device of scores."""
    num_rows, width = hidden.shape
    scores.view(-1, num_rows, scores.shape[1])[..., scores.shape[1] - width :].masked_fill_(hidden, -torch.inf)
    return scores


def _softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and log-sum-exps [rows, 1]; zero and minus infinity where a query sees nothing.

    The exponential of scores less their log-sum-exp would be off by its rounding, in all of a row.
    """
    total = torch.logsumexp(scores, dim=-1, keepdim=True)
    return torch.softmax(scores, dim=-1).masked_fill_(total == -torch.inf, 0), total
