"""The HGRN2 layer: linear attention whose forget gates follow from the data and are the keys (arXiv 2404.07904).

    S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T        o_t = S_t^T q_t        out = W_out norm(o)

(the outer-product form of section 3.2). A gate has a lower bound that rises from layer to layer, so that deep layers
remember long: ``f = b + (1 - b) sigmoid(W_f x)``. Queries go through SiLU and values through nothing, and there is no
other output gate than the query, as in flash-linear-attention and in the authors' own layer.

The published bounds are learned: over L layers, ``b_l`` is the sum of the first l of a softmax over layers. Here they
are constants, those with which the published ones begin: ``b_l = l / L``, layers counted from 0 and softmax layers
among them. So a layer has nothing in common with another one, and every way to divide layers over ranks divides these.
"""

import torch
from torch import nn
from torch.nn.functional import logsigmoid, silu

from leyden.model.config import ModelConfig
from leyden.model.forward_context import ForwardContext, Wanted, take
from leyden.model.mixers.linear import LinearAttention, heads_norm
from leyden.model.mixers.mixer import Memory
from leyden.model.mixers.states import PooledStates, RunningState
from leyden.ops import (
    gated_linear_attention,
    gated_linear_attention_decode,
    gated_linear_attention_prefill,
    gated_linear_attention_step,
)


def scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    state: torch.Tensor | None,
    context: ForwardContext,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`leyden.ops.gated_linear_attention` over the tokens of one process."""
    return gated_linear_attention(q, k, v, log_decay, state, context.alone())


def forget_gates(logits: torch.Tensor, lower_bound: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``f = b + (1 - b) sigmoid(logits)``, as ``1 - f`` and as ``log f``.

    Neither is formed from a rounded f: what a gate near 1 forgets would be lost, and what one near 0 keeps.

    Args:
        logits: any shape and floating dtype.
        lower_bound: b, at least 0 and below 1.

    Returns:
        ``1 - f`` in the dtype of the logits, and ``log f`` in float32 (float64 for float64).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    forgotten = (1 - lower_bound) * torch.sigmoid(-wide)
    # With a bound, f is at least that, and 1 - f at most as far from 1.
    log_gate = torch.log1p(-forgotten) if lower_bound else logsigmoid(wide)
    return forgotten.to(logits.dtype), log_gate


class Hgrn2Attention(LinearAttention):
    """``out(norm(attention(silu(q), 1 - f, v)))`` with decays f; the keys of ``qkv_proj`` are the gates' logits.

    ``qkv_proj`` lays its rows out as that of lightning attention does: head by head, each head's q, k and v in turn.
    """

    kind = "hgrn2_attention"
    title = "HGRN2"
    tensor_dims = {"qkv_proj.weight": 0, "norm.weight": 0, "out_proj.weight": 1}  # noqa: RUF012 - of the class
    state_name = "hgrn2_state"
    alone = staticmethod(scan)

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        width = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.norm = heads_norm(config)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.lower_bound = layer / config.num_hidden_layers
        self.scan = scan
        """The recurrence; where ranks share a row, one that exchanges states."""

    def forward(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within x, and to what ``memory`` remembers; see :meth:`Mixer.forward`."""
        B, T = x.shape[:2]
        q, logits, v = self.qkv_proj(x).view(B, T, self.num_heads, 3 * self.head_dim).chunk(3, dim=-1)
        k, log_decay = forget_gates(logits, self.lower_bound)
        q, state = silu(q), memory.state if isinstance(memory, RunningState) else None
        if isinstance(memory, PooledStates):
            tokens = (q, k, v, log_decay)
            out = memory.scan(tokens, gated_linear_attention_decode, gated_linear_attention_prefill)
        elif T == 1 and state is not None:
            out, state = gated_linear_attention_step(q[:, 0], k[:, 0], v[:, 0], log_decay[:, 0], state)
        else:
            out, state = self.scan(q, k, v, log_decay, state, context)
        return self.out_proj(self.norm(take(out.reshape(B, T, -1), wanted))), state
