"""What is launched for one call of lightning attention in Triton, and its gradients.

Everything here is decided from shapes alone, so that the same inputs give the same bits, and nothing is read back from
the device.
"""

from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, padded, power_of_two, products
from leyden.ops.lightning_attention import kernels as jitted

kernels = Kernels(jitted)

_PROGRAMS = 128
"""Programs that fill a GPU: documents are cut into segments until there are about so many, and not further, since the
states of segments cost another reading of keys and values, half as much again as the forward moves."""

_SHORTEST_SEGMENT = 512
"""Tokens. A segment's state is written and read once; at 512 tokens that is an eighth of the tokens' own bytes."""

_LONG_DOCUMENT = 1024
"""Tokens, on average, from which narrow heads take chunks of 128: half as many steps that wait for one another."""

_ANY = 1 << 30
_TILES = {
    torch.bfloat16: ((128, 64, 64, 4), (_ANY, 32, 32, 8)),
    torch.float16: ((64, 64, 64, 4), (128, 64, 64, 8), (_ANY, 32, 32, 8)),
    torch.float32: ((32, 32, 64, 8), (64, 16, 64, 8), (_ANY, 16, 16, 8)),  # products outside of the matrix units
}
"""By the widest head that a row is for: the largest chunk, value dims of a program, warps."""


@dataclass(frozen=True)
class Rows:
    """Documents end to end, and how they are cut.

    Attributes:
        cu_seqlens: [N + 1] int32 or int64, on the device.
        length: tokens of a segment.
        split: whether any document may have more than one segment.
        table: [segments, 2] int32: each segment's document, N where there is none, and its place there.
        first_segment: [N + 1] int32, where each document's segments begin.
    """

    cu_seqlens: torch.Tensor
    length: int
    split: bool
    table: torch.Tensor
    first_segment: torch.Tensor

    @classmethod
    def cut(cls, cu_seqlens: torch.Tensor, length: int, num_segments: int, split: bool) -> "Rows":
        """Into at most ``num_segments`` segments of ``length`` tokens, at least one a document."""
        counts = (cu_seqlens.diff() + (length - 1)).div(length, rounding_mode="floor").clamp_min(1)
        ends = counts.cumsum(0)
        index = torch.arange(num_segments, device=cu_seqlens.device)
        document = torch.searchsorted(ends, index, right=True)
        first = torch.cat([ends.new_zeros(1), ends])
        table = torch.stack([document, index - first[document]], dim=1)
        return cls(cu_seqlens, length, split, table.int(), first.int())

    @property
    def num_documents(self) -> int:
        return len(self.cu_seqlens) - 1


@dataclass(frozen=True)
class Plan:
    """What is decided from shapes alone.

    Attributes:
        tiles: of the programs.
        length: tokens of a segment.
        num_segments: the most there can be.
        split: whether a document may have more than one.
    """

    tiles: "Tiles"
    length: int
    num_segments: int
    split: bool

    @classmethod
    def of(cls, q: torch.Tensor, v: torch.Tensor, num_documents: int, longest: int) -> "Plan":
        """For rows q [T, H, K] and v [T, H, V], of which no document has more than ``longest`` tokens."""
        (T, H, K), V = q.shape, v.shape[-1]
        chosen = Tiles.of(K, V, T // max(1, num_documents), q.dtype)
        wanted = max(1, _PROGRAMS // (H * blocks(V, chosen.value_dims)))
        length = max(_SHORTEST_SEGMENT, power_of_two(blocks(T, wanted)))
        split = longest > length
        return cls(chosen, length, T // length + num_documents if split else num_documents, split)


@dataclass(frozen=True)
class Tiles:
    """The tile sizes of one launch: tokens of a chunk, value dims of a program, warps, pipeline stages."""

    chunk: int
    value_dims: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, key_dim: int, value_dim: int, mean_tokens: int, dtype: torch.dtype) -> "Tiles":
        """Chunks by length (short documents waste little of a tile), and as much state as registers hold.

        Either of the two dims is the keys' in one of the backward's passes. Compiled for Hopper, bfloat16 spills at
        most 8 bytes a thread; what larger chunks and fewer warps would take is in docs/kernels.md.
        """
        width = padded(max(key_dim, value_dim))
        if dtype == torch.bfloat16 and width <= 64 and mean_tokens >= _LONG_DOCUMENT:
            largest, values, warps = 128, 64, 8
        else:
            largest, values, warps = next(tiles for widest, *tiles in _TILES[dtype] if width <= widest)
        return cls(min(largest, padded(mean_tokens)), min(values, width), warps, num_stages=2)


@dataclass(frozen=True)
class _Call:
    """One call's tiles, segments and slopes; what the forward and the three passes of the backward share."""

    rows: Rows
    tiles: Tiles
    slopes: torch.Tensor
    product: Any
    precision: str

    @classmethod
    def of(
        cls, q: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, cu_seqlens: torch.Tensor, longest: int
    ) -> "_Call":
        plan = Plan.of(q, v, len(cu_seqlens) - 1, longest)
        rows = Rows.cut(cu_seqlens, plan.length, plan.num_segments, plan.split)
        return cls(rows, plan.tiles, slopes.contiguous(), *products(q.dtype))

    def final_states(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """[N, H, K, V] float32, not yet written."""
        return torch.empty(self.rows.num_documents, *k.shape[1:], v.shape[2], dtype=torch.float32, device=k.device)

    def entries(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        first: torch.Tensor | None,
        last: torch.Tensor,
        *,
        slots: torch.Tensor | None = None,
        reverse: bool = False,
    ) -> torch.Tensor | None:
        """The states that :meth:`attend` begins from; writes the final ones to ``last`` if rows are split."""
        (_, H, K), V, rows = k.shape, v.shape[-1], self.rows
        if not rows.split:
            return first
        states = torch.empty(len(rows.table), H, K, V, dtype=torch.float32, device=k.device)
        BK, BV = padded(K), min(self.tiles.value_dims, padded(V))
        kernels.summarise[(len(rows.table), H, blocks(V, BV))](
            k, v, self.slopes, states, rows.table, rows.cu_seqlens,
            rows.num_documents, rows.length, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            H=H, K=K, V=V, BK=BK, BV=BV, C=self.tiles.chunk, REVERSE=reverse,
            PRODUCT=self.product, PRECISION=self.precision,
            num_warps=self.tiles.num_warps, num_stages=self.tiles.num_stages,
        )  # fmt: skip
        block = 1024
        kernels.scan[(rows.num_documents, H, blocks(K * V, block))](
            states, first, last, slots, self.slopes, rows.first_segment, rows.cu_seqlens, rows.length,
            H=H, SIZE=K * V, BLOCK=block,
            HAS_FIRST=first is not None, HAS_SLOTS=slots is not None, REVERSE=reverse,
        )  # fmt: skip
        return states

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        first: torch.Tensor | None,
        last: torch.Tensor | None,
        *,
        slots: torch.Tensor | None = None,
        transposed: bool = False,
        reverse: bool = False,
    ) -> torch.Tensor:
        """Outputs [tokens, H, V] from the states ``first``; writes the final ones to ``last`` unless rows are split.

        Args:
            q, k, v: rows [tokens, H, K], [tokens, H, K] and [tokens, H, V].
            first: what :meth:`entries` gave.
            last: [N, H, K, V], or [slots, H, K, V].
            slots: [N], which rows of ``first`` and ``last`` are the documents'.
            transposed: the states are [.., V, K].
            reverse: time runs backwards.
        """
        (T, H, K), V, rows = q.shape, v.shape[-1], self.rows
        last, slots = (None, None) if rows.split else (last, slots)
        out = torch.empty(T, H, V, dtype=q.dtype, device=q.device)
        BK, BV = padded(K), min(self.tiles.value_dims, padded(V))
        kernels.attend[(len(rows.table), H, blocks(V, BV))](
            q, k, v, out, first, last, slots, self.slopes, rows.table, rows.cu_seqlens,
            rows.num_documents, rows.length,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
            H=H, K=K, V=V, BK=BK, BV=BV, C=self.tiles.chunk,
            SPLIT=rows.split, HAS_FIRST=first is not None, HAS_LAST=last is not None, HAS_SLOTS=slots is not None,
            TRANSPOSED=transposed, REVERSE=reverse, PRODUCT=self.product, PRECISION=self.precision,
            num_warps=self.tiles.num_warps, num_stages=self.tiles.num_stages,
        )  # fmt: skip
        return out


@torch.library.custom_op("leyden::lightning_attention", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    longest: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [tokens, H, *] to the outputs, the final states, and the states that segments begin from (or nothing)."""
    call = _Call.of(q, v, slopes, cu_seqlens, longest)
    final = call.final_states(k, v)
    entries = call.entries(k, v, initial_state, final)
    out = call.attend(q, k, v, entries, final)
    return out, final, entries if call.rows.split and entries is not None else final.new_empty(0)


@_forward.register_fake
def _(q, k, v, slopes, initial_state, cu_seqlens, longest):
    plan = Plan.of(q, v, len(cu_seqlens) - 1, longest)
    final = q.new_empty(len(cu_seqlens) - 1, *q.shape[1:], v.shape[2], dtype=torch.float32)
    entries = final.new_empty(plan.num_segments, *final.shape[1:]) if plan.split else final.new_empty(0)
    return v.new_empty(v.shape), final, entries


@torch.library.custom_op("leyden::lightning_attention_backward", mutates_args=())
def _backward(
    dout: torch.Tensor,
    dfinal: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    entries: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    longest: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v and the initial state; the same computation three times, twice with time reversed."""
    call = _Call.of(q, v, slopes, cu_seqlens, longest)
    dq = call.attend(dout, v, k, entries, None, transposed=True)
    dinitial = call.final_states(q, dout)
    dentries = call.entries(q, dout, dfinal, dinitial, reverse=True)
    dv = call.attend(k, q, dout, dentries, dinitial, reverse=True)
    dk = call.attend(v, dout, q, dentries, None, transposed=True, reverse=True)
    return dq, dk, dv, dinitial


@_backward.register_fake
def _(dout, dfinal, q, k, v, slopes, entries, cu_seqlens, longest):
    dinitial = q.new_empty(len(cu_seqlens) - 1, *q.shape[1:], v.shape[2], dtype=torch.float32)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dinitial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, slopes, initial_state, cu_seqlens, longest = inputs
    entries = output[2] if output[2].numel() else initial_state
    ctx.save_for_backward(q, k, v, slopes, entries, cu_seqlens)
    ctx.longest, ctx.resumed = longest, initial_state is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, *others = ctx.saved_tensors
    dout = torch.zeros_like(v) if grads[0] is None else last_dim_contiguous(grads[0])
    dfinal = None if grads[1] is None else grads[1].contiguous()
    dq, dk, dv, dinitial = _backward(dout, dfinal, q, k, v, *others, ctx.longest)
    return dq, dk, dv, None, dinitial if ctx.resumed else None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("leyden::lightning_attention_prefill", mutates_args=("states",))
def prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens: torch.Tensor,
) -> torch.Tensor:
    """Rows of documents whose states are rows ``slots`` of ``states``, read and written there."""
    q, k, v = (last_dim_contiguous(x) for x in (q, k, v))
    call = _Call.of(q, v, slopes, cu_seqlens, len(q))
    entries = call.entries(k, v, states, states, slots=slots)
    return call.attend(q, k, v, entries, states, slots=slots)


@prefill.register_fake
def _(q, k, v, slopes, states, slots, cu_seqlens):
    return v.new_empty(v.shape)


@torch.library.custom_op("leyden::lightning_attention_decode", mutates_args=("states",))
def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """One token [B, H, *] of each sequence; the states are read and written in place."""
    q, k, v = (last_dim_contiguous(x) for x in (q, k, v))
    (B, H, K), V = q.shape, v.shape[-1]
    out = torch.empty(B, H, V, dtype=q.dtype, device=q.device)
    BK = padded(K)
    BV = min(padded(V), max(16, 4096 // BK))  # 16 KB of state a program: many small programs hide the memory's latency
    kernels.decode[(B, H, blocks(V, BV))](
        q, k, v, out, states, slots, slopes.contiguous(),
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        H=H, K=K, V=V, BK=BK, BV=BV, num_warps=4,
    )  # fmt: skip
    return out


@decode.register_fake
def _(q, k, v, slopes, states, slots):
    return v.new_empty(v.shape)


def lightning_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`."""
    B, T = q.shape[:2]
    if cu_seqlens is None:
        cu_seqlens = torch.arange(B + 1, device=q.device) * T
    rows = (last_dim_contiguous(x.flatten(0, 1)) for x in (q, k, v))
    initial = None if initial_state is None else initial_state.float().contiguous()
    out, final, _ = _forward(*rows, slopes.float(), initial, cu_seqlens, T)
    return out.view(v.shape), final
