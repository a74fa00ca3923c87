"""The lightning attention layer of MiniMax-01 (arXiv 2501.08313, section 2.2, and the released modelling code)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from leyden.model.attention_options import lightning_scale
from leyden.model.config import ModelConfig
from leyden.model.float32 import Float32Module
from leyden.model.forward_context import ForwardContext, Wanted, take
from leyden.model.mixers.linear import LinearAttention, heads_norm
from leyden.model.mixers.mixer import Memory
from leyden.model.mixers.states import PooledStates, RunningState
from leyden.model.norm import RMSNorm
from leyden.ops import (
    apply_rotary,
    lightning_attention,
    lightning_attention_decode,
    lightning_attention_prefill,
    lightning_attention_step,
    lightning_slopes,
    silu_split,
)


class Slopes(Float32Module):
    """The decay slopes of one layer, float32 [H]; they follow from the shape and are not saved with the weights."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values: torch.Tensor
        self.register_buffer("values", values, persistent=False)


def scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    state: torch.Tensor | None,
    context: ForwardContext,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`leyden.ops.lightning_attention` over the tokens of one process."""
    return lightning_attention(q, k, v, slopes, state, context.alone())


def scored_scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    state: torch.Tensor | None,
    context: ForwardContext,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`scan` with the bits that it has without gradients, and a gradient."""
    assert state is None and context.cu_seqlens is None, "a whole text in a row of its own"
    return _InferenceForward.apply(q, k, v, slopes)


class _InferenceForward(torch.autograd.Function):
    """The forward of :func:`leyden.ops.lightning_attention` without gradients, and the backward of that with them."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(q, k, v, slopes)
        out, state = lightning_attention(q, k, v, slopes)
        ctx.mark_non_differentiable(state)
        return out, state

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the decorator hides the names)
        ctx: Any, dout: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        *given, slopes = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in given]
            out, _ = lightning_attention(inputs[0], inputs[1], inputs[2], slopes)
        return (*torch.autograd.grad(out, inputs, dout), None)


class LightningAttention(LinearAttention):
    """``out( norm(attention(silu(qkv(x)))) * sigmoid(gate(x)) )`` without positions other than the decay.

    ``qkv_proj`` lays its rows out head by head, each head's q, k and v in turn, as released. Other models of the family
    have no SiLU, norm queries and keys head by head, turn them by RoPE and scale the queries, in this order
    (Ring-linear-2.0, arXiv 2510.19338; MiniCPM-SALA; HypeNet, arXiv 2601.22156): the fields ``lightning_*`` and
    ``qk_norm`` of the configuration.
    """

    kind = "linear_attention"
    title = "lightning"
    tensor_dims = {  # noqa: RUF012 - of the class
        "qkv_proj.weight": 0,
        "output_gate.weight": 0,
        "norm.weight": 0,
        "out_proj.weight": 1,
        "slopes.values": 0,
    }
    state_name = "state"
    num_gates = 1
    alone = staticmethod(scan)
    scored = staticmethod(scored_scan)

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        width = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.output_gate = nn.Linear(config.hidden_size, width, bias=False)
        self.norm = heads_norm(config)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)
        normed = self.kind in config.qk_norm
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if normed else None
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if normed else None
        self.silu, self.scale = config.lightning_activation == "silu", lightning_scale(config)
        self.slopes = Slopes(self.slopes_of(config, layer))
        self.scan = scan
        """The recurrence; where ranks share a row, one that exchanges states."""

    @classmethod
    def derived_buffers(cls, config: ModelConfig, layer: int) -> Mapping[str, torch.Tensor]:
        return {"slopes.values": cls.slopes_of(config, layer)}

    @classmethod
    def slopes_of(cls, config: ModelConfig, layer: int) -> torch.Tensor:
        """[H] float32, of all heads of ``layer``: the formula that the configuration names."""
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        return lightning_slopes(heads, layer, layers, config.lightning_slope_factor)

    def _scan_pool(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, memory: PooledStates) -> torch.Tensor:
        """:func:`leyden.ops.lightning_attention` of q, k and v [1, T, H, K], each sequence from its own state."""
        slopes = self.slopes.values

        def decode(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, states: torch.Tensor, slots: torch.Tensor
        ) -> torch.Tensor:
            return lightning_attention_decode(q, k, v, slopes, states, slots)

        def prefill(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            states: torch.Tensor,
            slots: torch.Tensor,
            cu_seqlens: torch.Tensor,
        ) -> torch.Tensor:
            return lightning_attention_prefill(q, k, v, slopes, states, slots, cu_seqlens)

        return memory.scan((q, k, v), decode, prefill)

    def activated(self, qkv: torch.Tensor, context: ForwardContext) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The projections [B, T, H, 3K] to what the recurrence reads: q, k and v, [B, T, H, K] each."""
        q, k, v = silu_split(qkv) if self.silu else qkv.chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.lightning_turn is not None:
            cos, sin = context.lightning_turn
            return apply_rotary(q, cos, sin, scale=self.scale), apply_rotary(k, cos, sin), v
        return (q if self.scale == 1 else q * self.scale), k, v

    def forward(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within x, and to what ``memory`` remembers; see :meth:`Mixer.forward`."""
        B, T = x.shape[:2]
        q, k, v = self.activated(self.qkv_proj(x).view(B, T, self.num_heads, 3 * self.head_dim), context)
        state = memory.state if isinstance(memory, RunningState) else None
        if isinstance(memory, PooledStates):
            out = self._scan_pool(q, k, v, memory)
        elif T == 1 and state is not None:
            out, state = lightning_attention_step(q[:, 0], k[:, 0], v[:, 0], self.slopes.values, state)
        else:
            out, state = self.scan(q, k, v, self.slopes.values, state, context)
        gate = self.output_gate(take(x, wanted))
        return self.out_proj(self.norm.gated(take(out.reshape(B, T, -1), wanted), gate)), state
