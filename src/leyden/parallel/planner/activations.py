"""What one layer keeps of a row for its backward, and what its forward and backward need for a moment.

Counted tensor by tensor from the code of the layers and ops (what each ``save_for_backward`` holds, a storage that two
keep counted once), in the bodies that run on a CPU; those of a GPU keep the same or less.

Legend: N tokens of a rank between its layers, T tokens that its attention meets, D hidden, W of its heads' queries, G
of its heads' keys, F of an expert or dense feed-forward, k choices, R rows at its experts; b bytes of the computation's
dtype, w of float32 or wider.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from leyden.model import LayerKind
from leyden.model.kinds import entry_of
from leyden.parallel.planner.mixers import terms_of
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.sizes import Module
from leyden.parallel.planner.terms import Half

_ALIGNMENT = 64
"""Rows of an expert are filled up to a multiple of it where there are many (``ops/experts/portable.py``)."""
_LOGITS = 8 << 20
"""That exist at once (``ops/cross_entropy``); half as many where ranks divide the words."""


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        entry: the input, which is kept whatever is recomputed, and what the routers' losses need.
        attention, feed_forward: its halves.
    """

    entry: float
    attention: Half
    feed_forward: Half

    @property
    def kept(self) -> float:
        """Of the whole layer, its input included."""
        return self.entry + self.attention.kept + self.feed_forward.kept


def layer_activations(rank: Rank, kind: LayerKind) -> Layer:
    """Of a layer of ``kind`` and one micro-batch."""
    mixer, mlp = kind
    routing, feed_forward = entry_of(_FEED_FORWARDS, mlp, "has no terms in the planner")
    hidden = rank.own * rank.model.hidden_size * rank.dtype.itemsize
    half = feed_forward(rank)
    if rank.model.parallel_block:  # neither a sum between the halves, nor its norm
        half = replace(half, kept=half.kept - hidden - rank.own * rank.wide.itemsize)
    return Layer(hidden + routing(rank), terms_of(mixer).activations(rank), half)


def _routing(rank: Rank) -> float:
    """Logits and probabilities, weights and experts of the routing; whether kept.

    Of sigmoids also the scores and their sum, and of the chosen the scores, and weights before they are scaled.
    """
    model, N, w = rank.model, rank.own, rank.wide.itemsize
    kept = N * (2 * model.num_local_experts * w + model.num_experts_per_tok * (w + 8))
    if model.router == "sigmoid_groups":
        kept += N * (model.num_local_experts + 2 + 2 * model.num_experts_per_tok) * w
    return kept if model.capacity_factor is None else kept + N * model.num_experts_per_tok * (w + 1)


def _dense(rank: Rank) -> Half:
    """The sum before the norm; normed, gate, up, activation and product."""
    model, T, N, b, w = rank.model, rank.tokens, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    D, F = model.hidden_size, model.dense_width // rank.plan.tp
    kept = (N * D + T * D + T * 4 * F) * b + N * w
    return Half(kept, (T * 2 * F + N * D) * b, (T + N) * D * b, T * (3 * F + D) * b)


def _experts(rank: Rank) -> Half:
    """The sum before the norm; normed, wide for the router; rows sorted by expert and their projections.

    Where experts are shared, also the rows that came back.
    """
    model, plan, N, b, w = rank.model, rank.plan, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    D, F, k = model.hidden_size, model.intermediate_size // plan.etp, model.num_experts_per_tok
    shared = plan.ep * plan.etp > 1
    arrived = (rank.mean_own if plan.ep > 1 else N) * k * plan.etp
    local = model.num_local_experts // plan.ep
    # Rows are filled up by half the alignment on average.
    R = arrived + (local * _ALIGNMENT / 2 if arrived >= 4 * _ALIGNMENT * local else 0)
    longest = R / local
    kept = N * D * b + N * w + N * D * w + R * (D + 2 * F) * b
    forward = N * D * b + R * D * b + longest * F * b
    backward = R * D * b + longest * 3 * F * b + N * D * (b + w)
    if shared:
        kept += N * k * D * b
        forward += (N * k + arrived) * D * b
        backward += (N * k + arrived) * D * b
    if model.shared_intermediate_size:
        S = model.shared_intermediate_size
        kept += N * 4 * S * b
        if model.shared_expert_gate:
            kept += N * 3 * D * b + (N * D * w if w != b else 0)
        backward += N * (3 * S + 2 * D) * b
    own = arrived / plan.etp  # rows that came, were gathered and parts that came, and came back
    exchanged = (own if plan.ep > 1 else 0) + 2 * (arrived - own) + (N * k if plan.ep > 1 else 0)
    return Half(kept, exchanged * D * b, forward, backward)


_FEED_FORWARDS: Mapping[str, tuple[Callable[[Rank], float], Callable[[Rank], Half]]] = {
    "dense": (lambda rank: 0, _dense),
    "experts": (_routing, _experts),
}
"""By the names of ``mlp_types``: what the routers' losses need, and the feed-forward itself."""


def nextn_activations(rank: Rank) -> Layer:
    """Of a module for multi-token prediction: its layer, and what leads into it (embedded tokens, both normed)."""
    layer = layer_activations(rank, rank.model.nextn_kind())
    entered = rank.own * (3 * rank.model.hidden_size * rank.dtype.itemsize + 2 * rank.wide.itemsize)
    return replace(layer, entry=layer.entry + entered)


@dataclass(frozen=True)
class Ends:
    """What stands around the layers.

    Attributes:
        kept: of the last norm and of the loss, gradients of the hidden states and of the output projection among it.
        loss: bytes that the loss needs for a moment.
    """

    kept: float
    loss: float


def end_activations(rank: Rank, outer: Module) -> Ends:
    """Of the last stage, whose outer weights are ``outer``."""
    model, N, b, w = rank.model, rank.own, rank.dtype.itemsize, rank.wide.itemsize
    D, vocabulary = model.hidden_size, math.ceil(model.vocab_size / rank.plan.tp)
    weight = vocabulary * D
    tokens = rank.tokens
    # One buffer alone, or where ranks divide the words one as they are and one in float32 or wider.
    chunk = (
        min(tokens * vocabulary, _LOGITS) * b if rank.plan.tp == 1 else min(tokens * vocabulary, _LOGITS // 2) * (b + w)
    )
    kept = N * D * 3 * b + N * w + weight * b
    widened = weight * w if w != b else 0
    gathered = 2 * tokens * D * b if rank.plan.tp > 1 else 0
    return Ends(kept, max(widened, weight * b) + chunk + gathered + tokens * 2 * w)
