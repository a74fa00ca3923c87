"""What is launched for one call of lightning attention in Triton, and its gradients.

Everything here is decided from shapes alone, so that the same inputs give the same bits, and nothing is read back from
the device.
"""

from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.launching import blocks, last_dim_contiguous, padded, power_of_two, products
from leyden.ops.lightning_attention import kernels as jitted

kernels: Any = jitted  # launching is beyond types: a subscript with the grid, compile-time constants by keyword

_PROGRAMS = 512
"""Programs that fill a GPU: documents are cut into segments until there are about so many."""

_SHORTEST_SEGMENT = 512
"""Tokens. A segment's state is written and read once; at 512 tokens that is an eighth of the tokens' own bytes."""


@dataclass(frozen=True)
class Rows:
    """Documents end to end, and how they are cut.

    Attributes:
        cu_seqlens: [N + 1] int32 or int64, on the device.
        num_tokens: of all documents.
        length: tokens of a segment.
        split: whether any document may have more than one segment.
        table: [segments, 2] int32: each segment's document, N where there is none, and its place there.
        first_segment: [N + 1] int32, where each document's segments begin.
    """

    cu_seqlens: torch.Tensor
    num_tokens: int
    length: int
    split: bool
    table: torch.Tensor
    first_segment: torch.Tensor

    @classmethod
    def cut(cls, cu_seqlens: torch.Tensor, num_tokens: int, programs_per_token_range: int) -> "Rows":
        """Cut so that the segments, times the programs that each gets, fill a GPU."""
        num_documents = len(cu_seqlens) - 1
        wanted = max(1, _PROGRAMS // programs_per_token_range)
        length = max(_SHORTEST_SEGMENT, power_of_two(blocks(num_tokens, wanted)))
        num_segments = num_tokens // length + num_documents
        counts = (cu_seqlens.diff() + (length - 1)).div(length, rounding_mode="floor").clamp_min(1)
        ends = counts.cumsum(0)
        index = torch.arange(num_segments, device=cu_seqlens.device)
        document = torch.searchsorted(ends, index, right=True)
        first = torch.cat([ends.new_zeros(1), ends])
        table = torch.stack([document, index - first[document]], dim=1)
        return cls(cu_seqlens, num_tokens, length, num_tokens > length, table.int(), first.int())

    @property
    def num_documents(self) -> int:
        return len(self.cu_seqlens) - 1


@dataclass(frozen=True)
class Tiles:
    """The tile sizes of one launch: tokens of a chunk, value dims of a program, warps, pipeline stages."""

    chunk: int
    value_dims: int
    num_warps: int
    num_stages: int


def tiles(key_dim: int, value_dim: int, mean_tokens: int, dtype: torch.dtype) -> Tiles:
    """By shape alone: chunks of 32 to 128 tokens by length, and as much state as a program's registers hold."""
    chunk = min(128 if max(key_dim, value_dim) <= 64 else 64, max(32, power_of_two(mean_tokens)))
    if dtype == torch.float32:
        chunk = min(chunk, 32)
    values = min(64 if key_dim > 64 or dtype == torch.float32 else 128, padded(value_dim))
    return Tiles(chunk, values, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class _Call:
    """One call's tiles, segments and slopes; what the forward and the three passes of the backward share."""

    rows: Rows
    tiles: Tiles
    slopes: torch.Tensor
    product: Any
    precision: str

    @classmethod
    def of(cls, q: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, cu_seqlens: torch.Tensor) -> "_Call":
        (T, H, K), V = q.shape, v.shape[-1]
        chosen = tiles(K, V, T // (len(cu_seqlens) - 1), q.dtype)
        rows = Rows.cut(cu_seqlens, T, H * blocks(V, chosen.value_dims))
        product, precision = products(q.dtype)
        return cls(rows, chosen, slopes.contiguous(), product, precision)

    def entries(
        self, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor | None, *, reverse: bool = False
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The states that :meth:`attend` begins from, and the final ones, which it writes unless rows are split."""
        (_, H, K), V, rows = k.shape, v.shape[-1], self.rows
        final = torch.empty(rows.num_documents, H, K, V, dtype=torch.float32, device=k.device)
        if not rows.split:
            return first, final
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
            states, first, final, self.slopes, rows.first_segment, rows.cu_seqlens,
            rows.num_documents, rows.length,
            H=H, SIZE=K * V, BLOCK=block, HAS_FIRST=first is not None, REVERSE=reverse,
        )  # fmt: skip
        return states, final

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        first: torch.Tensor | None,
        last: torch.Tensor | None,
        *,
        transposed: bool = False,
        reverse: bool = False,
    ) -> torch.Tensor:
        """Outputs [tokens, H, V] from the states ``first``; writes the final ones to ``last`` unless rows are split.

        ``transposed``: the states are [.., V, K].
        """
        (T, H, K), V, rows = q.shape, v.shape[-1], self.rows
        last = None if rows.split else last
        out = torch.empty(T, H, V, dtype=q.dtype, device=q.device)
        BK, BV = padded(K), min(self.tiles.value_dims, padded(V))
        kernels.attend[(len(rows.table), H, blocks(V, BV))](
            q, k, v, out, first, last, None, self.slopes, rows.table, rows.cu_seqlens,
            rows.num_documents, rows.length,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
            *((1, K) if transposed else (V, 1)),
            H=H, K=K, V=V, BK=BK, BV=BV, C=self.tiles.chunk,
            SPLIT=rows.split, HAS_FIRST=first is not None, HAS_LAST=last is not None, HAS_SLOTS=False,
            REVERSE=reverse, PRODUCT=self.product, PRECISION=self.precision,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [tokens, H, *] to the outputs, the final states, and the states that segments begin from (or nothing)."""
    call = _Call.of(q, v, slopes, cu_seqlens)
    entries, final = call.entries(k, v, initial_state)
    out = call.attend(q, k, v, entries, final)
    return out, final, entries if call.rows.split and entries is not None else final.new_empty(0)


@_forward.register_fake
def _(q, k, v, slopes, initial_state, cu_seqlens):
    call = _Call.of(q, v, slopes, cu_seqlens)
    num_segments = len(call.rows.table) if call.rows.split else 0
    state = (q.shape[1], q.shape[2], v.shape[2])
    final = q.new_empty(len(cu_seqlens) - 1, *state, dtype=torch.float32)
    entries = final.new_empty(num_segments, *state) if num_segments else final.new_empty(0)
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v and the initial state; the same computation three times, twice with time reversed."""
    call = _Call.of(q, v, slopes, cu_seqlens)
    dq = call.attend(dout, v, k, entries, None, transposed=True)
    dentries, dinitial = call.entries(q, dout, dfinal, reverse=True)
    dv = call.attend(k, q, dout, dentries, dinitial, reverse=True)
    dk = call.attend(v, dout, q, dentries, None, transposed=True, reverse=True)
    return dq, dk, dv, dinitial


@_backward.register_fake
def _(dout, dfinal, q, k, v, slopes, entries, cu_seqlens):
    dinitial = q.new_empty(len(cu_seqlens) - 1, q.shape[1], q.shape[2], v.shape[2], dtype=torch.float32)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dinitial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, slopes, initial_state, cu_seqlens = inputs
    entries = output[2] if output[2].numel() else initial_state
    ctx.save_for_backward(q, k, v, slopes, entries, cu_seqlens)
    ctx.resumed = initial_state is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, slopes, entries, cu_seqlens = ctx.saved_tensors
    dout = torch.zeros_like(v) if grads[0] is None else last_dim_contiguous(grads[0])
    dfinal = None if grads[1] is None else grads[1].contiguous()
    dq, dk, dv, dinitial = _backward(dout, dfinal, q, k, v, slopes, entries, cu_seqlens)
    return dq, dk, dv, None, dinitial if ctx.resumed else None, None


_forward.register_autograd(_differentiate, setup_context=_save)


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
    out, final, _ = _forward(*rows, slopes.float(), initial, cu_seqlens)
    return out.view(v.shape), final
