"""Multi-head latent attention: all heads' keys and values are made of one short vector a token (arXiv 2405.04434, 2.1).

    c = norm(W_a x)       the latent, ``kv_lora_rank`` numbers        r = turn(W_r x)    a key that all heads share
    k_h = [U_h c ; r]     q_h = [n_h ; turn(p_h)]                     v_h = V_h c
    out = W_o [softmax(s q_h k_h^T) v_h]                              s = (qk_nope + qk_rope)^(-1/2)

Queries are ``W_q x``, or ``W_b norm(W_a' x)`` where ``q_lora_rank`` says how wide the vector between is. Both norms of
latents have the epsilon 1e-6 of the released code, whatever ``rms_norm_eps``. YaRN's factor for queries and keys meets
what turns alone, and its second factor the scale of the scores (:attr:`leyden.model.RopeScaling.score_factor`).

What is remembered of a token is c and r, ``kv_lora_rank + qk_rope_head_dim`` numbers for all heads together. There are
two ways to attend to it, which are equal but for rounding:

- *expanded*: keys and values of all heads are formed again, then it is softmax attention;
- *absorbed*: ``q_h k_h^T = (U_h^T n_h) c^T + turn(p_h) r^T`` and ``p v_h = V_h (p c)``, so that all heads share one
  key, [c ; r], and one value, c.

A token that is decoded in pools is absorbed and a prompt is expanded, whatever else is in the pass, so that a text has
the same bits however it is cut. With a :class:`leyden.model.Cache` it is what takes fewer operations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn.functional import pad

from leyden.model.config import ModelConfig
from leyden.model.forward_context import ForwardContext, Wanted, take
from leyden.model.mixers.mixer import Memory, Mixer, MixerCount, PoolTensor
from leyden.model.mixers.softmax import PooledPrompts, attend, room_for
from leyden.model.norm import RMSNorm
from leyden.model.rows import GRAIN, Rows, joined, pad_rows
from leyden.ops import apply_rotary, paged_latent_attention, softmax_attention

_EPS = 1e-6
_LANES = 16
"""Heads are filled up with zeros to a multiple of it, which the native bodies of softmax attention ask for."""


@dataclass(frozen=True)
class LatentShape:
    """The widths of a layer of latent attention.

    Attributes:
        latent: c, from which keys and values are made.
        nope: dims of a query and a key that do not turn.
        rope: those that do.
        value: dims of a value.
    """

    latent: int
    nope: int
    rope: int
    value: int

    @classmethod
    def of(cls, config: ModelConfig) -> Self:
        """That of a model with such layers."""
        widths = (config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim)
        latent, nope, rope, value = (width or 0 for width in widths)
        assert min(latent, nope, rope, value) > 0, "ModelConfig asks for them where a layer has latent attention"
        return cls(latent, nope, rope, value)

    @property
    def kept(self) -> int:
        """Numbers that are remembered of a token."""
        return self.latent + self.rope

    @property
    def query(self) -> int:
        """Dims of a query and of an expanded key."""
        return self.nope + self.rope

    @property
    def scale(self) -> float:
        """Of the scores."""
        return self.query**-0.5

    @property
    def head(self) -> int:
        """Dims of a head of queries, keys and values once all are filled up to one width."""
        return -(-max(self.query, self.value) // _LANES) * _LANES

    def absorbed_pays(self, num_queries: int, num_keys: int) -> bool:
        """Whether attending absorbed takes fewer products than forming the keys and values of all latents again."""
        projected, pairs = self.latent * (self.nope + self.value), num_queries * num_keys
        absorbed = num_queries * projected + pairs * 2 * self.kept
        return absorbed < num_keys * projected + pairs * (self.query + self.value)


class Latents(Memory):
    """The latents and shared keys of one layer [B, tokens, 1, kept], in a buffer that doubles as it fills."""

    def __init__(self) -> None:
        self._held: torch.Tensor | None = None

    def append(self, new: torch.Tensor, length: int) -> torch.Tensor:
        """Write [B, T, kept] after the first ``length`` positions; those up to the new end, [B, length + T, kept]."""
        end = length + new.shape[1]
        self._held = room_for(self._held, new.unsqueeze(2), length, end)
        self._held[:, length:end, 0] = new
        return self._held[:, :end, 0]


@dataclass(frozen=True)
class PooledLatents(PooledPrompts):
    """The latents and shared keys of one layer, and the rows that read and write them.

    Attributes:
        pages: [P, PAGE, 1, kept].
        rows: of the forward pass.
    """

    pages: torch.Tensor
    rows: Rows

    def attend(self, q: torch.Tensor, new: torch.Tensor, mixer: "LatentAttention", wanted_alone: bool) -> torch.Tensor:
        """Write ``new`` [1, T, kept] into the pages; [1, T, H V] of the queries [1, T, H, nope + rope].

        Args:
            q: turned.
            new: normed latents with turned keys behind them.
            mixer: whose pages they are.
            wanted_alone: as of :meth:`leyden.model.mixers.softmax.PooledAttention.attend`.
        """
        rows, n, num_rows = self.rows, self.rows.num_decodes, len(self.rows.places)
        self.pages.flatten(0, 1)[rows.places] = new[0, :num_rows, None]
        like, parts = q.new_empty(1, q.shape[1], q.shape[2] * mixer.shape.value), []
        if n:
            whole = n + -n % GRAIN
            absorbed = mixer.absorb(pad_rows(q[0, :n], whole))[:n]
            latents, width = self.pages.squeeze(2), mixer.shape.latent
            means = paged_latent_attention(absorbed, latents, width, mixer.shape.scale, rows.tables[:n], rows.lengths)
            parts.append(mixer.values_of(pad_rows(means, whole))[None, :n])
        for prompt in self.prompts(wanted_alone):
            if prompt.start < prompt.first:
                parts.append(like.new_zeros(1, prompt.first - prompt.start, like.shape[2]))
            if prompt.first < prompt.stop:
                pages = self.pages[rows.tables[n + prompt.number, : -(-prompt.length // self.pages.shape[1])]]
                held = pages.flatten(0, 1)[: prompt.length, 0]
                keys, values = mixer.expand(pad_rows(held, len(held) + prompt.padding)[None])
                queries = q[0, prompt.first : prompt.stop]
                padded = mixer.widened(pad_rows(queries, len(queries) + prompt.padding))[None]
                attended = softmax_attention(padded, keys, values)[:, : len(queries)]
                parts.append(mixer.narrowed(attended))
        return joined(parts, like)


class LatentAttention(Mixer):
    """Attention of DeepSeek-V2 and V3, in the tensor names of transformers' ``deepseek_v3``."""

    kind = "latent_attention"
    title = "latent"
    residual = "full_attn"
    tensor_dims = {  # noqa: RUF012 - of the class
        "q_proj.weight": 0,
        "q_b_proj.weight": 0,
        "kv_b_proj.weight": 0,
        "o_proj.weight": 1,
    }
    whole = ("q_a_proj.weight", "kv_a_proj_with_mqa.weight")
    whole_norms = ("q_a_layernorm.weight", "kv_a_layernorm.weight")
    not_by_row = ("kv_b_proj",)
    seam = "attend"
    alone = staticmethod(attend)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape, hidden, heads = LatentShape.of(config), config.hidden_size, config.num_attention_heads
        shape, rank = self.shape, config.q_lora_rank
        self.interleaved = config.rope_interleave
        if rank is None:
            self.q_proj = nn.Linear(hidden, heads * shape.query, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, rank, bias=False)
            self.q_a_layernorm = RMSNorm(rank, _EPS)
            self.q_b_proj = nn.Linear(rank, heads * shape.query, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, shape.kept, bias=False)
        self.kv_a_layernorm = RMSNorm(shape.latent, _EPS)
        self.kv_b_proj = nn.Linear(shape.latent, heads * (shape.nope + shape.value), bias=False)
        self.o_proj = nn.Linear(heads * shape.value, hidden, bias=False)
        self.attend = attend
        """Attention itself, expanded; where ranks share a row, one that exchanges keys and values."""

    @classmethod
    def create(cls, config: ModelConfig, layer: int) -> Self:
        return cls(config)

    @classmethod
    def count(cls, config: ModelConfig) -> MixerCount:
        """A visible key costs a head the products of its score and of its share of the values, expanded; one that is
        remembered costs those with the latent in their place."""
        shape, D, H, rank = LatentShape.of(config), config.hidden_size, config.num_attention_heads, config.q_lora_rank
        queries = D * H * shape.query if rank is None else rank * (D + H * shape.query)
        output = H * shape.value * D
        latents = D * shape.kept + shape.latent * H * (shape.nope + shape.value)
        return MixerCount(
            weights=queries + latents + output,
            idle_weights=queries + output,
            norm_weights=shape.latent + (rank or 0),
            values_per_token=shape.kept,
            mixed_values=2 * H * (shape.query + shape.value),
            flops_per_key=2 * H * (shape.query + shape.value),
            flops_per_kept_key=2 * H * (shape.kept + shape.latent),
        )

    @classmethod
    def memory(cls, config: ModelConfig) -> Memory:
        return Latents()

    @classmethod
    def page_tensors(cls, config: ModelConfig, dtype: torch.dtype) -> Mapping[str, PoolTensor]:
        return {"latents": PoolTensor((1, LatentShape.of(config).kept), dtype)}

    @classmethod
    def pooled(cls, tensors: Mapping[str, torch.Tensor], rows: Rows) -> Memory:
        return PooledLatents(tensors["latents"], rows)

    def forward(
        self, x: torch.Tensor, context: ForwardContext, memory: Memory | None, wanted: Wanted
    ) -> tuple[torch.Tensor, Any]:
        """Attend within x, and to the latents in ``memory``, to which those of x are appended.

        Arguments and result as of :meth:`Mixer.forward`.
        """
        pooled = isinstance(memory, PooledLatents)
        last = len(context.cos) if pooled or not isinstance(wanted, int) else wanted
        q, new = self._queries(x[:, -last:], context, last), self._latents(x, context)
        if pooled:
            attended = memory.attend(q, new, self, wanted is not None)
            return self.o_proj(take(attended, wanted)), None
        if isinstance(memory, Latents):
            held = memory.append(new, context.start)
            if self.shape.absorbed_pays(q.shape[1], held.shape[1]):
                absorbed = self.absorb(q) * (self.shape.kept**0.5 * self.shape.scale)
                means = softmax_attention(absorbed, held.unsqueeze(2), held.unsqueeze(2))[..., : self.shape.latent]
                return self.o_proj(self.values_of(means.flatten(0, 1)).unflatten(0, q.shape[:2])), None
        else:
            held = new
        keys, values = self.expand(held)
        return self.o_proj(self.narrowed(self.attend(self.widened(q), keys, values, context))), None

    def _queries(self, x: torch.Tensor, context: ForwardContext, last: int) -> torch.Tensor:
        """[B, T, H, nope + rope], turned, times what makes ``s q k^T`` of ``q k^T / sqrt(nope + rope)``."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if hasattr(self, "q_b_proj") else self.q_proj(x)
        nope, rope = q.unflatten(-1, (-1, self.shape.query)).split([self.shape.nope, self.shape.rope], dim=-1)
        turned = apply_rotary(self._paired(rope), context.cos[-last:], context.sin[-last:], scale=context.scale)
        q = torch.cat([nope, turned], dim=-1)
        return q if context.score_factor == 1 else q * context.score_factor

    def _latents(self, x: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """[B, T, kept]: c, and r behind it."""
        latent, rope = self.kv_a_proj_with_mqa(x).split([self.shape.latent, self.shape.rope], dim=-1)
        turned = apply_rotary(self._paired(rope.unsqueeze(2)), context.cos, context.sin, scale=context.scale)
        return torch.cat([self.kv_a_layernorm(latent), turned.squeeze(2)], dim=-1)

    def _paired(self, rope: torch.Tensor) -> torch.Tensor:
        """[..., rope] as it turns, in pairs (i, i + rope / 2)."""
        return rope.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) if self.interleaved else rope

    def expand(self, held: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, S, H, :attr:`LatentShape.head`] of [B, S, kept], with zeros behind."""
        shape = self.shape
        latent, rope = held.split([shape.latent, shape.rope], dim=-1)
        made = self.kv_b_proj(latent).unflatten(-1, (-1, shape.nope + shape.value))
        nope, values = made.split([shape.nope, shape.value], dim=-1)
        shared = rope.unsqueeze(2).expand(*nope.shape[:3], shape.rope)
        keys = torch.cat([nope, shared, *_zeros(nope, shape.head - shape.query)], dim=-1)
        return keys, torch.cat([values, *_zeros(values, shape.head - shape.value)], dim=-1)

    def widened(self, q: torch.Tensor) -> torch.Tensor:
        """Queries [..., nope + rope] for :func:`leyden.ops.softmax_attention` with expanded keys."""
        shape = self.shape
        factor = (shape.head / shape.query) ** 0.5
        return pad(q * factor, (0, shape.head - shape.query)) if shape.head > shape.query else q

    def narrowed(self, attended: torch.Tensor) -> torch.Tensor:
        """What attention to expanded values gives [B, T, H, head], as the output projection reads it."""
        return attended[..., : self.shape.value].flatten(2)

    def absorb(self, q: torch.Tensor) -> torch.Tensor:
        """Queries [..., H, nope + rope] to [..., H, kept], whose keys are what is remembered."""
        shape = self.shape
        nope, rope = q.split([shape.nope, shape.rope], dim=-1)
        by_head = nope.flatten(0, -3).transpose(0, 1)
        onto_latents = torch.bmm(by_head, self._made_of_latents(q.dtype)[:, : shape.nope]).transpose(0, 1)
        onto_latents = onto_latents.unflatten(0, q.shape[:-2])
        return torch.cat([onto_latents, rope], dim=-1)

    def values_of(self, means: torch.Tensor) -> torch.Tensor:
        """Means of latents [N, H, latent] to the heads' values [N, H V]."""
        onto_values = self._made_of_latents(means.dtype)[:, self.shape.nope :].transpose(1, 2)
        return torch.bmm(means.transpose(0, 1), onto_values).transpose(0, 1).flatten(1)

    def _made_of_latents(self, dtype: torch.dtype) -> torch.Tensor:
        """[H, nope + value, latent] in ``dtype``: what makes keys and values, in whatever form its weights are."""
        projection: Any = self.kv_b_proj
        weight = projection.weight
        if not weight.is_floating_point():  # of 8 bits
            weight = weight * projection.scale.to(torch.promote_types(dtype, torch.float32)).unsqueeze(-1)
        low_rank = getattr(projection, "lora", None)
        if low_rank is not None:
            weight = weight + low_rank.product()
        return weight.to(dtype).unflatten(0, (-1, self.shape.nope + self.shape.value))


def _zeros(like: torch.Tensor, width: int) -> list[torch.Tensor]:
    """[..., width], or nothing."""
    return [like.new_zeros(*like.shape[:-1], width)] if width else []
