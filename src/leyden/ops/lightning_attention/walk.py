"""The kernels of lightning attention, launched over the documents of one call, whatever their decays follow from."""

from dataclasses import dataclass
from typing import Any

import torch

from leyden.ops.launching import Kernels, blocks, last_dim_contiguous, padded, products
from leyden.ops.lightning_attention import kernels as jitted
from leyden.ops.lightning_attention.plan import LaunchPlan

kernels = Kernels(jitted)


@dataclass(frozen=True)
class Walk:
    """One call's plan, bounds and decays; what the forward and the three passes of the backward share.

    Attributes:
        plan: tiles and segments.
        cu_seqlens: [N + 1] int32 or int64, on the device; None where all documents have ``length`` tokens.
        num_documents: N.
        length: tokens of each document, where all have as many.
        slopes: [H] float32; None where decays follow from the data.
        product, precision: how matrices are multiplied.
        totals: [chunks, H, K] float32, the sums of log decays over chunks, where they follow from the data.
    """

    plan: LaunchPlan
    cu_seqlens: torch.Tensor | None
    num_documents: int
    length: int
    slopes: torch.Tensor | None
    product: Any
    precision: str
    totals: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        q: torch.Tensor,
        v: torch.Tensor,
        slopes: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None,
        num_documents: int,
    ) -> "Walk":
        """For rows q [T, H, K] and v [T, H, V]."""
        length = q.shape[0] // max(1, num_documents)
        plan = LaunchPlan.of(q, v, num_documents, length if cu_seqlens is None else q.shape[0])
        slopes = None if slopes is None else slopes.contiguous()
        return cls(plan, cu_seqlens, num_documents, length, slopes, *products(q.dtype))

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
        states, decays, gated = self.states(k, v, plan.num_segments), None, self.totals is not None
        if gated:
            decays = torch.empty(states.shape[:3], dtype=torch.float32, device=k.device)
        BK, BV = padded(K), min(tiles.value_dims, padded(V))
        kernels.summarise[(plan.num_segments * H * blocks(V, BV),)](
            k, v, self.slopes, states, self.totals, decays, self.cu_seqlens,
            self.num_documents, self.length, plan.length, *k.stride()[:2], *v.stride()[:2],
            H=H, K=K, V=V, BK=BK, BV=BV, C=tiles.chunk, GATED=gated, RAGGED=self.cu_seqlens is not None,
            REVERSE=reverse, PRODUCT=self.product, PRECISION=self.precision, num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )  # fmt: skip
        block = 1024
        kernels.scan[(self.num_documents * H * blocks(K * V, block),)](
            states, first, last, slots, self.slopes, decays, self.cu_seqlens, self.length, plan.length,
            H=H, SIZE=K * V, V=V, BLOCK=block, GATED=gated, RAGGED=self.cu_seqlens is not None,
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
        weights: torch.Tensor | None = None,
        passed: torch.Tensor | None = None,
        met: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
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
            weights, passed, met: what ``totals`` go with; see the kernel.
            dtype: of the outputs, that of q where None.
        """
        (T, H, K), V, plan, tiles = q.shape, v.shape[-1], self.plan, self.plan.tiles
        out = torch.empty(T, H, V, dtype=dtype or q.dtype, device=q.device)
        BK, BV = padded(K), min(tiles.value_dims, padded(V))
        kernels.attend[(plan.num_segments * H * blocks(V, BV),)](
            q, k, v, out, first, entries, last, slots, self.slopes, self.totals, weights, passed, met, self.cu_seqlens,
            self.num_documents, self.length, plan.length,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
            H=H, K=K, V=V, BK=BK, BV=BV, C=tiles.chunk, GATED=self.totals is not None, SPLIT=plan.split,
            RAGGED=self.cu_seqlens is not None,
            HAS_FIRST=first is not None, HAS_LAST=last is not None, HAS_SLOTS=slots is not None,
            TRANSPOSED=transposed, REVERSE=reverse, PRODUCT=self.product, PRECISION=self.precision,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        return out


def decode_token(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    states: torch.Tensor,
    new_states: torch.Tensor,
    slots: torch.Tensor | None,
    *,
    slopes: torch.Tensor | None = None,
    log_decay: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token of each sequence, q and k [B, H, K] and v [B, H, V], from ``states`` to ``new_states``: [B, H, V].

    The decays are ``slopes`` [H] float32, or ``log_decay`` [B, H, K] float32.
    """
    q, k, v = (last_dim_contiguous(x) for x in (q, k, v))
    slopes = None if slopes is None else slopes.contiguous()
    (B, H, K), V = q.shape, v.shape[-1]
    out = torch.empty(B, H, V, dtype=q.dtype, device=q.device)
    BK = padded(K)
    BV = min(padded(V), max(16, 4096 // BK))  # 16 KB of state a program: many small programs hide the memory's latency
    kernels.decode[(B * H * blocks(V, BV),)](
        q, k, v, out, states, new_states, slots, slopes, log_decay,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *(q if log_decay is None else log_decay).stride()[:2],
        H=H, K=K, V=V, BK=BK, BV=BV, GATED=log_decay is not None, HAS_SLOTS=slots is not None, num_warps=4,
    )  # fmt: skip
    return out
