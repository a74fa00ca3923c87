"""The softmax attention layer: grouped queries, RoPE on the first dims of each head (arXiv 2501.08313, section 2)."""

import torch
from torch import nn

from leyden.model.cache import KeyValues
from leyden.model.config import ModelConfig
from leyden.model.pools import PooledKeyValues
from leyden.model.sequence import Sequence, Wanted, take
from leyden.ops import apply_rotary, softmax_attention


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """:func:`leyden.ops.softmax_attention` over the tokens of one process."""
    return softmax_attention(q, k, v, sequence.alone())


class SoftmaxAttention(nn.Module):
    """Causal attention with ``num_key_value_heads`` shared keys and values, scale ``head_dim^-1/2``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, shared = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.attend = attend
        """Attention itself; where ranks share a row, one that exchanges keys and values."""

    def forward(
        self, x: torch.Tensor, sequence: Sequence, memory: KeyValues | PooledKeyValues | None, wanted: Wanted
    ) -> torch.Tensor:
        """Attend within x, and to the keys and values in ``memory``, to which those of x are appended.

        Args:
            x: [B, T, D].
            sequence: the positions and the packed documents, if any.
            memory: keys and values of the tokens before, or None.
            wanted: which rows are asked for; all of them where documents are packed.

        Returns:
            [B, wanted rows, D].
        """
        pooled = isinstance(memory, PooledKeyValues)
        last = len(sequence.cos) if pooled or not isinstance(wanted, int) else wanted
        q, k, v = (
            proj(rows).unflatten(-1, (-1, self.head_dim))
            for proj, rows in ((self.q_proj, x[:, -last:]), (self.k_proj, x), (self.v_proj, x))
        )
        q = apply_rotary(q, sequence.cos[-last:], sequence.sin[-last:])
        k = apply_rotary(k, sequence.cos, sequence.sin)
        if pooled:
            attended = memory.attend(q, k, v, wanted_alone=wanted is not None)
            return self.o_proj(take(attended, wanted).flatten(2))
        if memory is not None:
            k, v = memory.append(k, v, sequence.start)
        return self.o_proj(self.attend(q, k, v, sequence).flatten(2))
