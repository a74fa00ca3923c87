"""What the mixer of one layer keeps for its backward, and what it hands to other ranks, by kind.

Counted from the code of ``leyden.model.mixers``, of its ops, and of ``leyden.parallel.sequence``; the legend is that of
``activations.py``.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from leyden.model.kinds import entry_of
from leyden.model.mixers.latent import LatentShape
from leyden.ops.lightning_attention.chunks import segments
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.terms import Bytes, Half, Passes


@dataclass(frozen=True)
class MixerTerms:
    """Of one kind of mixer.

    Attributes:
        activations: what it keeps of a row, and what it needs for a moment.
        traffic: what it hands over, but for what tensor ranks divide.
    """

    activations: Callable[[Rank], Half]
    traffic: Callable[[Rank], Passes]


def terms_of(kind: str) -> MixerTerms:
    """Those of a layer of ``kind`` (an entry of ``layer_types``).

    Raises:
        UserError: there are none.
    """
    return entry_of(_TERMS, kind, "has no terms in the planner, so that memory and traffic cannot be foretold")


def _lightning_activations(rank: Rank) -> Half:
    """Normed, qkv before and after SiLU, states at segments, output, gate, gated; both norms' inverse deviations.

    Queries and keys that are normed, turned or scaled are kept as the recurrence reads them, and what is normed too.
    """
    model, T, N, b, w = rank.model, rank.tokens, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    heads, K = model.num_attention_heads // rank.plan.tp, model.head_dim
    D, W = model.hidden_size, heads * model.head_dim
    state = heads * K * K * w
    normed, turned = "linear_attention" in model.qk_norm, bool(model.lightning_rotary_dim)
    copies = 3 * (model.lightning_activation == "silu") + 2 * normed
    copies += 2 if normed or turned else model.lightning_scale != "none"
    kept = (T * D + T * (6 + copies) * W) * b + N * w + T * _norm_groups(rank) * w + T * 2 * heads * normed * w
    kept += _num_segments(T, heads * K) * state
    forward = (N * D + T * W) * b + 2 * state
    if rank.plan.cp > 1:  # weights of the first and of the last document, the entry's state; all ranks' states
        kept += 2 * T * heads * w + state
        forward += rank.plan.cp * state + T * W * w
    backward = T * 7 * W * b + 4 * state
    return Half(kept, (T * 4 * W + N * D) * b, forward, backward)


def _cosformer2_activations(rank: Rank) -> Half:
    """As lightning attention, but that values are not copied; cosines and sines, which are float32."""
    terms = _lightning_activations(rank)
    W = rank.model.num_attention_heads // rank.plan.tp * rank.model.head_dim
    return replace(
        terms, kept=terms.kept - rank.tokens * W * rank.dtype.itemsize + rank.tokens * rank.model.head_dim * 4
    )


def _hgrn2_activations(rank: Rank) -> Half:
    """Normed, qkv, q behind SiLU, keys and what they are made of, decays, output and its norm; inverse deviations.

    The backward has the states at the beginnings of chunks of one head at a time in C++, whose memory is not PyTorch's.
    """
    model, T, N, b, w = rank.model, rank.tokens, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    heads, K = model.num_attention_heads // rank.plan.tp, model.head_dim
    D, W = model.hidden_size, heads * K
    state = heads * K * K * w
    kept = (T * D + T * 7 * W) * b + T * 3 * W * w + N * w + T * _norm_groups(rank) * w
    forward = (N * D + T * W) * b + T * W * w + 2 * state
    if rank.plan.cp > 1:  # all ranks' states, with their decays; weights of the last document's keys
        kept += rank.plan.cp * (state + W * w) + state + 2 * T * W * w
        forward += rank.plan.cp * (state + W * w) + T * W * w
    return Half(kept, (T * 3 * W + N * D) * b, forward, T * (4 * W * b + 3 * W * w) + 2 * state)


def _norm_groups(rank: Rank) -> int:
    """Of the norm over heads, how many groups a rank has a part of."""
    return max(1, rank.model.lightning_norm_groups // rank.plan.tp)


@functools.lru_cache(maxsize=1024)
def _num_segments(num_tokens: int, elements: int) -> int:
    return len(segments(num_tokens, elements))


def _softmax_activations(rank: Rank) -> Half:
    """Normed, turned q and k, v, output as the projection takes it; the norm's inverse deviation.

    Where heads are normed, q and k before that; where they are gated, the gates and what they are multiplied by.
    """
    model, T, N, b, w = rank.model, rank.tokens, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    D, W = model.hidden_size, model.num_attention_heads // rank.plan.tp * model.head_dim
    G = model.num_key_value_heads // rank.plan.tp * model.head_dim
    kept = (T * D + T * (2 * W + 2 * G)) * b + N * w
    forward, backward = (T * (W + G)) * b, T * (4 * W + 2 * G) * b + T * 2 * G * w
    if rank.plan.cp > 1:  # in the balanced layout; blocks that come and go; output and sums in float32 or wider
        mine = rank.ring[rank.at["cp"]]
        kept = (T * D + mine * (W + 2 * G) + T * W) * b + N * w + mine * (W * w + rank.model.num_attention_heads * 8)
        forward = mine * (4 * G * b + W * w * 2)
        backward = mine * (4 * G * b + (W + 8 * G) * w + 2 * W * b)
    if {"full_attention", "sliding_attention"} & set(model.qk_norm):
        kept += T * (W + G) * b + T * (W + G) // model.head_dim * w
    if model.attn_output_gate:
        kept += T * 2 * W * b
    return Half(kept, (T * (2 * W + 2 * G) + N * D) * b, forward, backward)


def _latent_activations(rank: Rank) -> Half:
    """Normed; the vector between the projections of queries, and its norm; latent and shared key, and their norm; q, k
    and v of one width; output as the projection takes it. Inverse deviations of all norms.

    While it is made, and again in the backward, q, k and v exist as their projections give them.
    """
    model, T, N, b, w = rank.model, rank.tokens, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    shape, heads, D = LatentShape.of(model), model.num_attention_heads // rank.plan.tp, model.hidden_size
    W, out = _latent_width(rank), heads * shape.value
    between, norms = 2 * (model.q_lora_rank or 0), 1 + (model.q_lora_rank is not None)
    made = heads * (shape.query + shape.nope + shape.value)
    kept = T * (D + between + shape.kept + shape.latent) * b + (N + T * norms) * w
    small = T * (between // 2 + shape.kept + made)
    if rank.plan.cp == 1:
        kept += T * (3 * W + out) * b
        forward, backward = T * 2 * W * b, T * 6 * W * b + T * 2 * W * w
    else:  # as of softmax attention, in the balanced layout
        mine = rank.ring[rank.at["cp"]]
        kept += (mine * 3 * W + T * out) * b + mine * (W * w + heads * 8)
        forward, backward = mine * (4 * W * b + 2 * W * w), mine * (6 * W * b + 9 * W * w)
    return Half(kept, (small + N * D) * b, forward, backward)


def _latent_width(rank: Rank) -> int:
    """Of queries, and as well of keys and of values, of this rank's heads."""
    return rank.model.num_attention_heads // rank.plan.tp * LatentShape.of(rank.model).head


def _lightning_traffic(rank: Rank) -> Passes:
    """LASP+, and the norm over the heads of all tensor ranks; norms in groups are whole on one rank each."""
    found: Bytes = Counter()
    if rank.plan.cp > 1:
        state = rank.model.num_attention_heads // rank.plan.tp * rank.model.head_dim**2
        found["cp", "all_gather"] = state * rank.wide.itemsize
    if rank.plan.tp > 1 and rank.model.lightning_norm_groups == 1:
        found["tp", "all_reduce"] = rank.tokens * rank.wide.itemsize
    return Passes(found, found)


def _hgrn2_traffic(rank: Rank) -> Passes:
    """States and their decays to all ranks, and their gradients back; the norm over the heads of all tensor ranks."""
    forward: Bytes = Counter()
    if rank.plan.tp > 1 and rank.model.lightning_norm_groups == 1:
        forward["tp", "all_reduce"] = rank.tokens * rank.wide.itemsize
    backward: Bytes = Counter(forward)
    if rank.plan.cp > 1:
        K = rank.model.head_dim
        state = rank.model.num_attention_heads // rank.plan.tp * K * (K + 1) * rank.wide.itemsize
        forward["cp", "all_gather"] = state
        backward["cp", "reduce_scatter"] = rank.plan.cp * state
    return Passes(forward, backward)


def _softmax_widths(rank: Rank) -> tuple[int, int]:
    """Of the queries of this rank's heads, and of the keys."""
    model, tp = rank.model, rank.plan.tp
    return (model.num_attention_heads // tp * model.head_dim, model.num_key_value_heads // tp * model.head_dim)


def _softmax_traffic(rank: Rank) -> Passes:
    """The switch of layouts there and back, keys and values around the ring, and their gradients."""
    W, G = _softmax_widths(rank)
    return _ring_traffic(rank, W, 2 * G)


def _latent_traffic(rank: Rank) -> Passes:
    """As of softmax attention, with the expanded keys and values of all heads."""
    W = _latent_width(rank)
    return _ring_traffic(rank, W, 2 * W)


def _ring_traffic(rank: Rank, q: int, kv: int) -> Passes:
    """Of queries, and of keys and values together, of so many numbers a token."""
    cp, index = rank.plan.cp, rank.at["cp"]
    forward: Bytes = Counter()
    backward: Bytes = Counter()
    if cp > 1:
        sizes = rank.ring
        b, mine = rank.dtype.itemsize, sizes[index]
        around = [sizes[(index - step) % cp] for step in range(cp)]
        forward["cp", "all_to_all"] = (rank.tokens * (q + kv) + mine * q) * b
        backward["cp", "all_to_all"] = (rank.tokens * q + mine * (q + kv)) * b
        forward["cp", "send"] = sum(around[:-1]) * kv * b
        backward["cp", "send"] = sum(around[:-1]) * kv * b + sum(around[1:]) * kv * rank.wide.itemsize
    return Passes(forward, backward)


_TERMS: Mapping[str, MixerTerms] = {
    "linear_attention": MixerTerms(_lightning_activations, _lightning_traffic),
    "full_attention": MixerTerms(_softmax_activations, _softmax_traffic),
    "sliding_attention": MixerTerms(_softmax_activations, _softmax_traffic),
    "cosformer2_attention": MixerTerms(_cosformer2_activations, _lightning_traffic),
    "hgrn2_attention": MixerTerms(_hgrn2_activations, _hgrn2_traffic),
    "latent_attention": MixerTerms(_latent_activations, _latent_traffic),
}
