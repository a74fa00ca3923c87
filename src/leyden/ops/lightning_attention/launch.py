"""What is launched for one call of lightning attention in Triton, and its gradients.

Everything here is decided from shapes and the kind of GPU alone, so that the same inputs give the same bits there, and
nothing is read back from the device. Nothing but the kernels is launched: no tables are made before them.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from leyden.ops.launching import (
    Kernels,
    blocks,
    has_large_memory,
    last_dim_contiguous,
    multiprocessors,
    padded,
    products,
)
from leyden.ops.lightning_attention import kernels as jitted

kernels = Kernels(jitted)

_SHORTEST_SEGMENT = 512
"""Tokens. A segment's state is written and read once; at 512 tokens that is an eighth of the tokens' own bytes."""

_MULTIPLE = 64
"""Tokens. Segments are whole chunks, of any size."""


@dataclass(frozen=True)
class LightningTiles:
    """The tile sizes of one launch.

    Attributes:
        chunk: tokens of a chunk.
        value_dims: of a program.
        num_warps: of a program.
        resident: programs that a multiprocessor holds at once, by the registers and memory that they take.
        num_stages: with 3, a chunk's loads are issued before the products of the chunk before it; with 2, after them.
    """

    chunk: int
    value_dims: int
    num_warps: int
    resident: int
    num_stages: int = 3


_ANY = 1 << 30
_TILES = {
    torch.bfloat16: (
        (64, (64, 64, 4, 2), (64, 32, 4, 2)),
        (128, (64, 128, 8, 1), (64, 64, 8, 1)),
        (_ANY, (32, 64, 8, 1)),
    ),
    torch.float16: ((64, (64, 32, 4, 2)), (128, (32, 32, 8, 1)), (_ANY, (16, 32, 8, 1))),
    torch.float32: ((32, (32, 64, 8, 1)), (64, (16, 64, 8, 1)), (_ANY, (16, 16, 8, 1))),
}
"""By the widest head that a row is for: chunk, value dims, warps and residents, where programs are many and where they
are few. float32 is multiplied outside of the matrix units."""

_NARROW_TILES = {**_TILES, torch.bfloat16: ((64, (64, 64, 4, 2)), (128, (64, 32, 4, 2)), (_ANY, (32, 32, 8, 1)))}
"""Where products read their operands from registers, which then hold less of the state, and memory is small."""


@dataclass(frozen=True)
class LaunchPlan:
    """What is decided from shapes and the device alone.

    Attributes:
        tiles: of the programs.
        length: the most tokens of a segment.
        num_segments: the most there can be.
        split: whether a document may have more than one.
    """

    tiles: LightningTiles
    length: int
    num_segments: int
    split: bool

    @classmethod
    def of(cls, q: torch.Tensor, v: torch.Tensor, num_documents: int, longest: int) -> "LaunchPlan":
        """For rows q [T, H, K] and v [T, H, V], of which no document has more than ``longest`` tokens.

        A program takes as many value dims as registers hold, so that queries and keys are read by few; fewer where all
        programs then run at once. Where there is still room for twice as many, documents are cut into segments (whose
        states cost another reading of keys and values, half as much again as the forward moves).
        """
        (T, H, K), V = q.shape, v.shape[-1]
        width = padded(max(K, V))  # either may be the keys' in one of the backward's passes
        table = (_TILES if has_large_memory(q.device) else _NARROW_TILES)[q.dtype]
        wide, *narrow = (LightningTiles(*tiles) for tiles in next(row for widest, *row in table if width <= widest))

        def rounds(tiles: LightningTiles, documents: int) -> float:
            programs = documents * H * blocks(V, min(tiles.value_dims, padded(V)))
            return programs / (multiprocessors(q.device) * tiles.resident)

        chosen = next((tiles for tiles in narrow if rounds(tiles, num_documents) <= 1), wide)
        short = next((chunk for chunk in (16, 32) if chunk * num_documents >= T), chosen.chunk)  # T may be symbolic
        chosen = replace(chosen, chunk=min(chosen.chunk, short))
        parts = max(1, int(1 / rounds(chosen, 1)))
        length = max(_SHORTEST_SEGMENT, blocks(blocks(T, parts), _MULTIPLE) * _MULTIPLE)
        split = longest > length
        return cls(chosen, length, T // length + num_documents if split else num_documents, split)


@dataclass(frozen=True)
class _Call:
    """One call's plan, bounds and slopes; what the forward and the three passes of the backward share.

    Attributes:
        plan: tiles and segments.
        cu_seqlens: [N + 1] int32 or int64, on the device; None where all documents have ``length`` tokens.
        num_documents: N.
        length: tokens of each document, where all have as many.
        slopes: [H] float32.
        product, precision: how matrices are multiplied.
    """

    plan: LaunchPlan
    cu_seqlens: torch.Tensor | None
    num_documents: int
    length: int
    slopes: torch.Tensor
    product: Any
    precision: str

    @classmethod
    def of(
        cls, q: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, cu_seqlens: torch.Tensor | None, num_documents: int
    ) -> "_Call":
        length = q.shape[0] // max(1, num_documents)
        plan = LaunchPlan.of(q, v, num_documents, length if cu_seqlens is None else q.shape[0])
        return cls(plan, cu_seqlens, num_documents, length, slopes.contiguous(), *products(q.dtype))

    def states(self, k: torch.Tensor, v: torch.Tensor, rows: int) -> torch.Tensor:
        """[rows, H, K, V] float32, not yet written."""
        return torch.empty(rows, *k.shape[1:], v.shape[2], dtype=torch.float32, device=k.device)

    def entries(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        first: torch.Tensor | None,
        last: torch.Tensor | None,
        *,
        slots: torch.Tensor | None = None,
        reverse: bool = False,
    ) -> torch.Tensor | None:
        """The states that segments begin from, and into ``last`` those that documents of several segments end with.

        Returns:
            [segments, H, K, V], of which rows of whole documents are not written; None where no document is split.
        """
        (_, H, K), V, plan, tiles = k.shape, v.shape[-1], self.plan, self.plan.tiles
        if not plan.split:
            return None
        states = self.states(k, v, plan.num_segments)
        BK, BV = padded(K), min(tiles.value_dims, padded(V))
        kernels.summarise[(plan.num_segments * H * blocks(V, BV),)](
            k, v, self.slopes, states, self.cu_seqlens,
            self.num_documents, self.length, plan.length, *k.stride()[:2], *v.stride()[:2],
            H=H, K=K, V=V, BK=BK, BV=BV, C=tiles.chunk, RAGGED=self.cu_seqlens is not None, REVERSE=reverse,
            PRODUCT=self.product, PRECISION=self.precision, num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        block = 1024
        kernels.scan[(self.num_documents * H * blocks(K * V, block),)](
            states, first, last, slots, self.slopes, self.cu_seqlens, self.length, plan.length,
            H=H, SIZE=K * V, BLOCK=block, RAGGED=self.cu_seqlens is not None,
            HAS_FIRST=first is not None, HAS_LAST=last is not None, HAS_SLOTS=slots is not None, REVERSE=reverse,
        )  # fmt: skip
        return states

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        first: torch.Tensor | None,
        entries: torch.Tensor | None,
        last: torch.Tensor | None,
        *,
        slots: torch.Tensor | None = None,
        transposed: bool = False,
        reverse: bool = False,
    ) -> torch.Tensor:
        """Outputs [tokens, H, V]; writes the states that documents of one segment end with to ``last``.

        Args:
            q, k, v: rows [tokens, H, K], [tokens, H, K] and [tokens, H, V].
            first: the states that documents begin from, zeros where None.
            entries: what :meth:`entries` gave.
            last: [N, H, K, V], or [slots, H, K, V].
            slots: [N], which rows of ``first`` and ``last`` are the documents'.
            transposed: the states are [.., V, K].
            reverse: time runs backwards.
        """
        (T, H, K), V, plan, tiles = q.shape, v.shape[-1], self.plan, self.plan.tiles
        out = torch.empty(T, H, V, dtype=q.dtype, device=q.device)
        BK, BV = padded(K), min(tiles.value_dims, padded(V))
        kernels.attend[(plan.num_segments * H * blocks(V, BV),)](
            q, k, v, out, first, entries, last, slots, self.slopes, self.cu_seqlens,
            self.num_documents, self.length, plan.length,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
            H=H, K=K, V=V, BK=BK, BV=BV, C=tiles.chunk, SPLIT=plan.split, RAGGED=self.cu_seqlens is not None,
            HAS_FIRST=first is not None, HAS_LAST=last is not None, HAS_SLOTS=slots is not None,
            TRANSPOSED=transposed, REVERSE=reverse, PRODUCT=self.product, PRECISION=self.precision,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        return out


@torch.library.custom_op("leyden::lightning_attention", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_documents: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [tokens, H, *] to the outputs, the final states, and the states that segments begin from (or nothing)."""
    call = _Call.of(q, v, slopes, cu_seqlens, num_documents)
    final = call.states(k, v, num_documents)
    entries = call.entries(k, v, initial_state, final)
    out = call.attend(q, k, v, initial_state, entries, final)
    return out, final, final.new_empty(0) if entries is None else entries


@_forward.register_fake
def _(q, k, v, slopes, initial_state, cu_seqlens, num_documents):
    longest = q.shape[0] // max(1, num_documents) if cu_seqlens is None else q.shape[0]
    plan = LaunchPlan.of(q, v, num_documents, longest)
    final = q.new_empty(num_documents, *q.shape[1:], v.shape[2], dtype=torch.float32)
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
    initial_state: torch.Tensor | None,
    entries: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    num_documents: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v and the initial state, if there was one; the same computation three times, twice with
    time reversed."""
    call = _Call.of(q, v, slopes, cu_seqlens, num_documents)
    dq = call.attend(dout, v, k, initial_state, entries, None, transposed=True)
    dinitial = None if initial_state is None else call.states(q, dout, num_documents)
    dentries = call.entries(q, dout, dfinal, dinitial, reverse=True)
    dv = call.attend(k, q, dout, dfinal, dentries, dinitial, reverse=True)
    dk = call.attend(v, dout, q, dfinal, dentries, None, transposed=True, reverse=True)
    return dq, dk, dv, slopes.new_empty(0) if dinitial is None else dinitial


@_backward.register_fake
def _(dout, dfinal, q, k, v, slopes, initial_state, entries, cu_seqlens, num_documents):
    dinitial = slopes.new_empty(0) if initial_state is None else torch.empty_like(initial_state)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dinitial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, slopes, initial_state, cu_seqlens, ctx.num_documents = inputs
    ctx.save_for_backward(q, k, v, slopes, initial_state, output[2] if output[2].numel() else None, cu_seqlens)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    q, k, v, slopes, initial_state, *others = ctx.saved_tensors
    dout = torch.zeros_like(v) if grads[0] is None else last_dim_contiguous(grads[0])
    dfinal = None if grads[1] is None else grads[1].contiguous()
    dq, dk, dv, dinitial = _backward(dout, dfinal, q, k, v, slopes, initial_state, *others, ctx.num_documents)
    return dq, dk, dv, None, None if initial_state is None else dinitial, None, None


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
    call = _Call.of(q, v, slopes, cu_seqlens, len(slots))
    entries = call.entries(k, v, states, states, slots=slots)
    return call.attend(q, k, v, states, entries, states, slots=slots)


@prefill.register_fake
def _(q, k, v, slopes, states, slots, cu_seqlens):
    return v.new_empty(v.shape)


def _decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    states: torch.Tensor,
    new_states: torch.Tensor,
    slots: torch.Tensor | None,
) -> torch.Tensor:
    q, k, v = (last_dim_contiguous(x) for x in (q, k, v))
    (B, H, K), V = q.shape, v.shape[-1]
    out = torch.empty(B, H, V, dtype=q.dtype, device=q.device)
    BK = padded(K)
    BV = min(padded(V), max(16, 4096 // BK))  # 16 KB of state a program: many small programs hide the memory's latency
    kernels.decode[(B * H * blocks(V, BV),)](
        q, k, v, out, states, new_states, slots, slopes.contiguous(),
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        H=H, K=K, V=V, BK=BK, BV=BV, HAS_SLOTS=slots is not None, num_warps=4,
    )  # fmt: skip
    return out


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
    return _decode(q, k, v, slopes, states, states, slots)


@decode.register_fake
def _(q, k, v, slopes, states, slots):
    return v.new_empty(v.shape)


@torch.library.custom_op("leyden::lightning_attention_step", mutates_args=())
def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token [B, H, *] of each sequence, from its own row of ``states`` to a new one."""
    new = torch.empty_like(states, memory_format=torch.contiguous_format)
    return _decode(q, k, v, slopes, states.contiguous(), new, None), new


@step.register_fake
def _(q, k, v, slopes, states):
    return v.new_empty(v.shape), states.new_empty(states.shape)


def lightning_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`leyden.ops.lightning_attention`."""
    rows = (last_dim_contiguous(x.flatten(0, 1)) for x in (q, k, v))
    initial = None if initial_state is None else initial_state.float().contiguous()
    num_documents = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    out, final, _ = _forward(*rows, slopes.float(), initial, cu_seqlens, num_documents)
    return out.view(v.shape), final
