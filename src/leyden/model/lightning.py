"""The lightning attention layer of MiniMax-01 (arXiv 2501.08313, section 2.2, and the released modelling code)."""

import torch
from torch import nn

from leyden.model.cache import LightningState
from leyden.model.config import ModelConfig
from leyden.model.float32 import Float32Module
from leyden.model.norm import RMSNorm
from leyden.model.pools import PooledStates
from leyden.model.sequence import Sequence, Wanted, take
from leyden.ops import lightning_attention, lightning_attention_step, lightning_slopes, silu_split


class Slopes(Float32Module):
    """The decay slopes of one layer, float32 [H]; they follow from the shape and are not saved with the weights."""

    def __init__(self, num_heads: int, layer: int, num_layers: int) -> None:
        super().__init__()
        self.values: torch.Tensor
        self.register_buffer("values", lightning_slopes(num_heads, layer, num_layers), persistent=False)


def scan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slopes: torch.Tensor,
    state: torch.Tensor | None,
    sequence: Sequence,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`leyden.ops.lightning_attention` over the tokens of one process."""
    return lightning_attention(q, k, v, slopes, state, sequence.alone())


class LightningAttention(nn.Module):
    """``out( norm(attention(silu(qkv(x)))) * sigmoid(gate(x)) )`` without positions other than the decay.

    ``qkv_proj`` lays its rows out head by head, each head's q, k and v in turn, as released.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        width = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.output_gate = nn.Linear(config.hidden_size, width, bias=False)
        self.norm = RMSNorm(width, config.lightning_norm_eps)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.slopes = Slopes(self.num_heads, layer, config.num_hidden_layers)
        self.scan = scan
        """The recurrence; where ranks share a row, one that exchanges states."""

    def forward(
        self, x: torch.Tensor, sequence: Sequence, memory: LightningState | PooledStates | None, wanted: Wanted
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within x, and to what ``memory`` remembers.

        Args:
            x: [B, T, D].
            sequence: the packed documents, if any.
            memory: what was read before; None at the beginning.
            wanted: which rows are asked for.

        Returns:
            [B, wanted rows, D] and the new state; None for that where the memory has changed its own.
        """
        B, T = x.shape[:2]
        q, k, v = silu_split(self.qkv_proj(x).view(B, T, self.num_heads, 3 * self.head_dim))
        state = memory.state if isinstance(memory, LightningState) else None
        if isinstance(memory, PooledStates):
            out = memory.scan(q, k, v, self.slopes.values)
        elif T == 1 and state is not None:
            out, state = lightning_attention_step(q[:, 0], k[:, 0], v[:, 0], self.slopes.values, state)
        else:
            out, state = self.scan(q, k, v, self.slopes.values, state, sequence)
        gate = self.output_gate(take(x, wanted))
        return self.out_proj(self.norm.gated(take(out.reshape(B, T, -1), wanted), gate)), state
