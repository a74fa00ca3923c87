"""What is launched for one call of lightning attention in Triton, and its gradients.

Everything here is decided from shapes alone, so that the same inputs give the same bits, and nothing is read back from
the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch.autograd.function import once_differentiable
from triton import knobs

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
        length = max(_SHORTEST_SEGMENT, _power_of_two(-(-num_tokens // wanted)))
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
    chunk = min(128 if max(key_dim, value_dim) <= 64 else 64, max(32, _power_of_two(mean_tokens)))
    if dtype == torch.float32:
        chunk = min(chunk, 32)
    values = min(64 if key_dim > 64 or dtype == torch.float32 else 128, _padded(value_dim))
    return Tiles(chunk, values, num_warps=4, num_stages=2)


def _power_of_two(count: int) -> int:
    """The least that is no smaller."""
    return 1 << (count - 1).bit_length()


def _padded(dim: int) -> int:
    """A dim of a matrix product: at least 16."""
    return max(16, _power_of_two(dim))


_PRECISION = {
    torch.bfloat16: (tl.bfloat16, "ieee"),
    torch.float16: (tl.float32, "tf32"),
    torch.float32: (tl.float32, "ieee"),
}
"""What is multiplied, and how. Scores of float16 inputs may overflow float16; tf32 rounds as float16 does."""


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
        rows = Rows.cut(cu_seqlens, T, H * -(-V // chosen.value_dims))
        product, precision = _PRECISION[q.dtype]
        if product == tl.bfloat16 and interpreted():
            product = tl.float32  # the interpreter's bfloat16 products are wrong
        return cls(rows, chosen, slopes.float().contiguous(), product, precision)

    def entries(
        self, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor | None, *, reverse: bool = False
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The states that :meth:`attend` begins from, and the final ones, which it writes unless rows are split."""
        (_, H, K), V, rows = k.shape, v.shape[-1], self.rows
        final = torch.empty(rows.num_documents, H, K, V, dtype=torch.float32, device=k.device)
        if not rows.split:
            return first, final
        states = torch.empty(len(rows.table), H, K, V, dtype=torch.float32, device=k.device)
        BK, BV = _padded(K), min(self.tiles.value_dims, _padded(V))
        kernels.summarise[(len(rows.table), H, -(-V // BV))](
            k, v, self.slopes, states, rows.table, rows.cu_seqlens,
            rows.num_documents, rows.length, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            H=H, K=K, V=V, BK=BK, BV=BV, C=self.tiles.chunk, REVERSE=reverse,
            PRODUCT=self.product, PRECISION=self.precision,
            num_warps=self.tiles.num_warps, num_stages=self.tiles.num_stages,
        )  # fmt: skip
        block = 1024
        kernels.scan[(rows.num_documents, H, -(-K * V // block))](
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
        BK, BV = _padded(K), min(self.tiles.value_dims, _padded(V))
        kernels.attend[(len(rows.table), H, -(-V // BV))](
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


class TritonLightningAttention(torch.autograd.Function):
    """See :func:`leyden.ops.lightning_attention`; all in rows, [tokens, H, *], the last dim contiguous.

    Saved for the backward: q, k, v and, where documents are cut, the state at the beginning of each segment.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor,
        initial_state: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        call = _Call.of(q, v, slopes, cu_seqlens)
        initial = None if initial_state is None else initial_state.float().contiguous()
        entries, final = call.entries(k, v, initial)
        out = call.attend(q, k, v, entries, final)
        ctx.save_for_backward(q, k, v, entries)
        ctx.call = call
        ctx.initial_dtype = None if initial_state is None else initial_state.dtype
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the names)
        ctx: Any, *grads: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        q, k, v, entries = ctx.saved_tensors
        call: _Call = ctx.call
        dout = torch.zeros_like(v) if grads[0] is None else last_dim_contiguous(grads[0])
        dfinal = None if grads[1] is None else grads[1].contiguous()
        dq = call.attend(dout, v, k, entries, None, transposed=True)
        dentries, dinitial = call.entries(q, dout, dfinal, reverse=True)
        dv = call.attend(k, q, dout, dentries, dinitial, reverse=True)
        dk = call.attend(v, dout, q, dentries, None, transposed=True, reverse=True)
        return dq, dk, dv, None, None if ctx.initial_dtype is None else dinitial.to(ctx.initial_dtype), None


def last_dim_contiguous(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def interpreted() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter."""
    return knobs.runtime.interpret


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
    out, final = TritonLightningAttention.apply(*rows, slopes, initial_state, cu_seqlens)
    return out.view(v.shape), final
