"""The cosFormer2 layer: linear attention that forgets nothing and knows positions by rotation.

cosFormer (arXiv 2202.08791) weighs the product of a query and a key by the cosine of an angle that grows with their
distance. cosFormer2 has an angle for each pair of dims, which makes the weight a rotation of both by their positions,
and is "a linear attention model without decay" (arXiv 2406.16690, which compares it and names no formula):

    S_t = S_{t-1} + (R_t k_t) v_t^T        o_t = S_t^T R_t q_t        so that  o_t = sum_j (q_t^T R_{t-j} k_j) v_j

The form is that of its authors' repository (Doraemonzzz/xmixers, model type ``cosformer2``): SiLU on queries and keys
and none on values; R_t turns pair i of all K dims of a head by ``t base^(-2i / (H K))``, in all heads alike, with base
10,000; no normaliser but the norm over all heads. Here the layer around it is that of lightning attention, whose output
gate has full rank where xmixers' has rank K, and pairs are (i, i + K/2) where theirs are (2i, 2i + 1), which is the
same up to the order of the projections' rows. So a layer has the weights of a lightning layer, name by name, and a
comparison of the two shows what decay and positions do.
"""

import torch
from torch.nn.functional import silu

from leyden.model.config import ModelConfig
from leyden.model.forward_context import ForwardContext
from leyden.model.mixers.lightning import LightningAttention
from leyden.ops import apply_rotary, rotary_angles, rotary_frequencies

_BASE = 10_000.0
"""As published. It is not ``rope_theta``, which stages of longer contexts change for softmax attention."""


class Cosformer2Attention(LightningAttention):
    """:class:`LightningAttention` without decay, whose queries and keys are turned by their positions."""

    kind = "cosformer2_attention"
    title = "cosFormer2"
    state_name = "cosformer2_state"

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self._theta = _BASE ** (1 / config.num_attention_heads)

    @classmethod
    def slopes_of(cls, config: ModelConfig, layer: int) -> torch.Tensor:
        """[H] zeros, on the CPU."""
        return torch.zeros(config.num_attention_heads, device="cpu")

    def frequencies(self, device: torch.device | None = None) -> torch.Tensor:
        """[K / 2] float64: by how much each pair of a head turns from one position to the next, in radians."""
        return rotary_frequencies(self.head_dim, self._theta, device)

    def activated(self, qkv: torch.Tensor, context: ForwardContext) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See :meth:`LightningAttention.activated`; queries and keys of a head are turned as two heads."""
        turning, v = qkv.split([2 * self.head_dim, self.head_dim], dim=-1)
        heads = silu(turning).reshape(*qkv.shape[:2], 2 * self.num_heads, self.head_dim)
        frequencies = self.frequencies(context.positions.device)
        turned = apply_rotary(heads, *rotary_angles(context.positions, frequencies))
        q, k = turned.view(turning.shape).chunk(2, dim=-1)
        return q, k, v
