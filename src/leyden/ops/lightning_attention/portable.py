"""Lightning attention in chunks, in plain PyTorch, with a backward of its own (derived in docs/math.md).

Within a chunk of C tokens attention is a masked C x C product; what came before the chunk enters through the state at
its beginning. The sequence is worked through in segments of some thousand tokens, so that the temporaries stay in the
cache and do not grow with the length. Products run in bfloat16 for bfloat16 inputs; states are float32.

Shapes: B rows, T tokens, H heads, K key dims, V value dims; a segment is n chunks of C tokens, [n, B, H, C, *].
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from leyden.ops.finite import all_finite
from leyden.ops.lightning_attention.chunks import ChunkSegment, Decays, scan, segments
from leyden.ops.lightning_attention.documents import DocumentBounds, write_end_states


def lightning_attention_portable(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`."""
    documents = None if cu_seqlens is None else DocumentBounds.of(cu_seqlens, q.device)
    if documents is not None and initial_state is not None:
        return _each_document(q, k, v, slopes, initial_state, documents)
    out, state = _LightningAttention.apply(q, k, v, slopes, initial_state, documents)
    if documents is not None and not all_finite(out, state):
        # What crosses from one document to another is multiplied by zero, which leaves a NaN a NaN.
        return _each_document(q, k, v, slopes, None, documents)
    return out, state


def step_portable(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention_step`."""
    # What slow heads lose in a token is less than a rounded decay is off by: it is added to the state, and that last.
    loss = torch.expm1(-slopes.to(state.dtype)).view(-1, 1, 1)
    new = torch.mul(k.to(state.dtype).unsqueeze(-1), v.to(state.dtype).unsqueeze(-2))
    new.addcmul_(state, loss).add_(state)
    out = torch.matmul(q.to(state.dtype).unsqueeze(-2), new).squeeze(-2)
    return out.to(q.dtype), new


def _each_document(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    documents: DocumentBounds,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed documents one after the other: for resumed states, where documents are few and long."""
    lengths = documents.lengths
    pieces = zip(*(x.split(lengths, dim=1) for x in (q, k, v)), strict=True)
    states = [None] * len(lengths) if initial_state is None else initial_state.split(1)
    results = [
        _LightningAttention.apply(*piece, slopes, state, None) for piece, state in zip(pieces, states, strict=True)
    ]
    return torch.cat([out for out, _ in results], dim=1), torch.cat([state for _, state in results])


@dataclass(frozen=True)
class _Plan:
    """How one call works through its tokens.

    Attributes:
        narrow: the dtype of products. float16 is multiplied in float32, because its scores would overflow.
        wide: the dtype of states, decays and slopes.
        slopes: [H], wide.
        segments: all tokens, in order.
        decays: the decays within a chunk, by the chunk's length.
        documents: the packed documents, if any.
    """

    narrow: torch.dtype
    wide: torch.dtype
    slopes: torch.Tensor
    segments: list[ChunkSegment]
    decays: dict[int, Decays]
    documents: DocumentBounds | None

    @classmethod
    def of(cls, q: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, documents: DocumentBounds | None) -> "_Plan":
        wide = torch.promote_types(q.dtype, torch.float32)
        narrow = q.dtype if q.dtype == torch.bfloat16 else wide
        slopes = slopes.to(wide)
        cut = segments(q.shape[1], max(1, q.shape[0] * q.shape[2] * max(q.shape[3], v.shape[3])))
        decays = {chunk: Decays.of(slopes, chunk, narrow) for chunk in {segment.chunk for segment in cut}}
        return cls(narrow, wide, slopes, cut, decays, documents)

    def decays_in(self, segment: ChunkSegment) -> Decays:
        """The decays of this segment's chunks."""
        decays = self.decays[segment.chunk]
        if self.documents is None or not self.documents.divide(segment):
            return decays
        return decays.between(segment, self.documents.starts[segment.start : segment.end])

    def state(self, k: torch.Tensor, v: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """A new wide [B, H, K, V]: the state given, or zeros."""
        state = k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3], dtype=self.wide)
        return state if given is None else state.copy_(given)


class _LightningAttention(torch.autograd.Function):
    """Saved for the backward: q, k, v and the state at the beginning of each segment."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor,
        initial_state: torch.Tensor | None,
        documents: DocumentBounds | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan = _Plan.of(q, v, slopes, documents)
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        state = plan.state(k, v, initial_state)
        ends = None if documents is None else state.new_zeros(len(documents.lengths), *state.shape[1:])
        entries = []
        for segment in plan.segments:
            entries.append(state)
            decays = plan.decays_in(segment)
            qs, ks, vs = (segment.take(x, plan.narrow) for x in (q, k, v))
            states = scan((ks * decays.exit).mT @ vs, decays.across, state)
            result = (qs * decays.entry) @ states[:-1].to(plan.narrow)
            segment.put(_add_product(result, decays.weigh_(qs @ ks.mT), vs), out)
            if documents is not None and ends is not None:
                write_end_states(documents, segment, k, v, plan.slopes, states, ends)
            state = states[-1].clone()  # a view would keep all of the segment's states
        ctx.save_for_backward(q, k, v, *entries)
        ctx.plan = plan
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        ctx.set_materialize_grads(False)
        return out, state if ends is None else ends

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the names)
        ctx: Any, *grads: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *entries = ctx.saved_tensors
        plan: _Plan = ctx.plan
        dout, dstate = grads
        if dout is None:
            dout = torch.zeros_like(v)
        if plan.documents is not None and dstate is not None:
            return (*_backward_each_document(q, k, v, plan, dout, dstate), None, None, None)
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        dstate = plan.state(k, v, dstate)
        for segment, entry in zip(reversed(plan.segments), reversed(entries), strict=True):
            decays = plan.decays_in(segment)
            qs, ks, vs, dos = (segment.take(x, plan.narrow) for x in (q, k, v, dout))
            k_exit = ks * decays.exit
            states = scan(k_exit.mT @ vs, decays.across, entry)[:-1].to(plan.narrow)
            dstates = scan((qs * decays.entry).mT @ dos, decays.across, dstate, reverse=True)
            dstate, dexits = dstates[0].clone(), dstates[1:].to(plan.narrow)
            scores = decays.weigh_(qs @ ks.mT)
            segment.put(_add_product(k_exit @ dexits, scores.mT, dos), dv)
            dscores = decays.weigh_(dos @ vs.mT)
            segment.put(_add_product((vs * decays.exit) @ dexits.mT, dscores.mT, qs), dk)
            segment.put(_add_product((dos * decays.entry) @ states.mT, dscores, ks), dq)
        if plan.documents is not None and not all_finite(dq, dk, dv):
            return (*_backward_each_document(q, k, v, plan, dout, None), None, None, None)
        dinitial = None if ctx.initial_dtype is None else dstate.to(ctx.initial_dtype)
        return dq, dk, dv, None, dinitial, None


def _backward_each_document(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: _Plan,
    dout: torch.Tensor,
    dstate: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The gradients of q, k, v, document by document.

    For packed documents whose final states have gradients too, which training never asks, and for such of which one
    holds a NaN or infinity, which must not reach the others.
    """
    assert plan.documents is not None, "called for packed documents alone"
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out, state = _each_document(inputs[0], inputs[1], inputs[2], plan.slopes, None, plan.documents)
        if dstate is None:
            return torch.autograd.grad(out, inputs, dout)
        return torch.autograd.grad((out, state), inputs, (dout, dstate))


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``total += a @ b`` over [n, B, H], accumulated within the product."""
    total.flatten(0, 2).baddbmm_(a.flatten(0, 2), b.flatten(0, 2))
    return total
