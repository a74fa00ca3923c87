"""The bytes that a rank hands to collectives in one optimizer step, by axis and operation.

What :func:`leyden.parallel.traffic.count_traffic` counts on a running rank is foretold here from shapes alone, op by
op in the order of the code that communicates: FSDP (``shard.py``), tensor ranks (``tensor.py``, ``vocabulary.py``),
context ranks (``sequence``), experts (``experts``), stages (``pipeline``), and the end of a step (``train.step``).

Where a token's experts are is known when it is routed and not before: the bytes of ``ep`` and ``etp`` are those of an
even routing that drops nothing. Summed over all ranks they are exact for every routing that drops nothing.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping

from leyden.model import LayerKind
from leyden.model.kinds import entry_of
from leyden.parallel.pipeline import boundary
from leyden.parallel.planner.mixers import terms_of
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.schedule import gathers
from leyden.parallel.planner.sizes import Module, layer_weights, nextn_weights, outer_weights
from leyden.parallel.planner.terms import Bytes, Passes, divided

_RADIX_BYTES = 256 * 4
"""Of one expert's histogram in one round of the global capacity's radix select."""


def predict_traffic(rank: Rank) -> Bytes:
    """Everything that the rank hands over in one step of ``step.num_micro_batches`` micro-batches."""
    model, plan = rank.model, rank.plan
    total: Bytes = Counter()
    for number, layers in rank.stages:
        first, last = layers.start == 0, layers.stop == model.num_hidden_layers
        per_batch: Bytes = Counter()
        for kind, count in Counter(model.layer_kinds()[layers.start : layers.stop]).items():
            module = layer_weights(model, kind, plan, rank.at)
            _add(total, _weights(rank, module, number, is_layer=True), count)
            _add(per_batch, _layer(rank, kind), count)
        _add(total, _weights(rank, outer_weights(model, plan, rank.at, first=first, last=last), number, is_layer=False))
        if first:
            _add(per_batch, _embedding(rank))
        if last:
            _add(per_batch, _loss(rank))
        routed = len(model.expert_layers(layers))
        if last and rank.num_nextn:
            _add(total, _weights(rank, nextn_weights(model, plan, rank.at), number, is_layer=True), rank.num_nextn)
            for terms in (_layer(rank, model.nextn_kind()), _embedding(rank), _loss(rank)):
                _add(per_batch, terms, rank.num_nextn)
            routed += rank.num_nextn * (model.nextn_kind()[1] == "experts")
        _add(per_batch, _routers(rank, routed, last=last))
        _add(per_batch, _boundary(rank, first=first, last=last))
        _add(total, per_batch, rank.step.num_micro_batches)
    _add(total, _end_of_step(rank))
    return Counter({key: num_bytes for key, num_bytes in total.items() if num_bytes})


def predict_attention(rank: Rank, kind: str) -> Bytes:
    """What the attention of one layer of ``kind`` hands over for a row, in its forward and backward, itself alone."""
    passes = terms_of(kind).traffic(rank)
    return passes.forward + passes.backward


def by_axis(traffic: Bytes) -> dict[str, int]:
    """Whole bytes of every axis that carries any."""
    total: Counter[str] = Counter()
    for (axis, _), num_bytes in traffic.items():
        total[axis] += num_bytes
    return {axis: round(num_bytes) for axis, num_bytes in total.items() if num_bytes}


def _add(total: Bytes, more: Bytes, times: float = 1) -> None:
    for key, num_bytes in more.items():
        total[key] += num_bytes * times  # type: ignore[assignment]  # an even routing may split a row


def _weights(rank: Rank, module: Module, stage: int, *, is_layer: bool) -> Bytes:
    """FSDP's collectives over one module in a whole step."""
    plan, found = rank.plan, Counter()
    for group in module.groups:
        num_gathers, num_reduces = gathers(plan, stage, rank.step.num_micro_batches, is_layer=is_layer)
        if not is_layer:  # each module's loss is one more forward of the outermost module
            num_gathers += rank.num_nextn * rank.step.num_micro_batches
        if group.ranks > 1:
            found[group.axis, "all_gather"] += num_gathers * group.padded // group.ranks * rank.dtype.itemsize
            found[group.axis, "reduce_scatter"] += num_reduces * group.padded * rank.reduce_dtype.itemsize
        if plan.dp_replicate > 1:
            copies = group.axis.replace("fsdp", "copies")
            found[copies, "all_reduce"] += num_reduces * group.padded // group.ranks * rank.reduce_dtype.itemsize
    return found


def _layer(rank: Rank, kind: LayerKind) -> Bytes:
    """One layer and one micro-batch."""
    mixer, mlp = kind
    attention = terms_of(mixer).traffic(rank)
    experts = entry_of(_FEED_FORWARDS, mlp, "has no terms in the planner")(rank)
    found: Bytes = Counter()
    mode = rank.plan.settings.activation_checkpointing
    for passes in (Passes(*divided(rank)), attention, experts):
        _add(found, passes.forward)
        _add(found, passes.backward)
        if mode != "none":
            _add(found, passes.again(mode))
    return found


def _experts(rank: Rank) -> Passes:
    """Counts, dispatch, the gather and the scatter over ETP, combine; before them what capacity asks."""
    model, plan = rank.model, rank.plan
    row = model.num_experts_per_tok * model.hidden_size * rank.dtype.itemsize  # of one token's assignments
    sent, usual = rank.own * row, rank.mean_own * row
    received = usual if plan.ep > 1 else sent
    rows: Bytes = Counter()
    if plan.ep > 1:
        rows["ep", "all_to_all"] = sent + received  # type: ignore[assignment]  (a usual number of rows may be no whole one)
    if plan.etp > 1:
        rows["etp", "all_to_all"] = (plan.etp - 1) * (received + usual)  # type: ignore[assignment]
    forward = Counter(rows)
    counts = model.num_local_experts * plan.settings.token_groups * 8
    if plan.ep > 1:
        forward["ep", "all_to_all"] += counts
    if plan.etp > 1:
        forward["etp", "all_gather"] += counts
    _add(forward, _capacity(rank))
    return Passes(forward, rows)


def _dense(rank: Rank) -> Passes:
    """What tensor ranks divide."""
    return Passes(*divided(rank), ends=True)


_FEED_FORWARDS: Mapping[str, Callable[[Rank], Passes]] = {"dense": _dense, "experts": _experts}
"""By the names of ``mlp_types``."""


def _capacity(rank: Rank) -> Bytes:
    """The global router: histograms of probabilities where those decide, and counts."""
    model, plan = rank.model, rank.plan
    if model.capacity_factor is None or plan.settings.capacity != "global" or plan.stage == 1:
        return Counter()
    found: Bytes = Counter({("stage", "all_gather"): model.num_local_experts * 8})
    if model.token_drop == "probability":
        found["stage", "all_reduce"] = rank.wide.itemsize * model.num_local_experts * _RADIX_BYTES
    return found


def _embedding(rank: Rank) -> Bytes:
    """Rows of the ranks' words, added up and divided; in the backward gathered."""
    if rank.plan.tp == 1:
        return Counter()
    one = rank.model.hidden_size * rank.dtype.itemsize
    return Counter({("tp", "reduce_scatter"): rank.tokens * one, ("tp", "all_gather"): rank.own * one})


def _loss(rank: Rank) -> Bytes:
    """Hidden states gathered, three numbers a token, their gradients divided; all in the forward."""
    found: Bytes = Counter()
    if rank.plan.tp > 1:
        one = rank.model.hidden_size * rank.dtype.itemsize
        found["tp", "all_gather"] = rank.own * one + 3 * rank.tokens * rank.wide.itemsize
        found["tp", "reduce_scatter"] = rank.tokens * one
    return found


def _routers(rank: Rank, num_layers: int, *, last: bool) -> Bytes:
    """Assignments chosen and kept, for the balance loss; the number of labels, where the loss is.

    Of the sequence-wise loss the counts of one document: those of each further one are as many.
    """
    model, plan = rank.model, rank.plan
    if not model.num_local_experts or plan.stage == 1:
        return Counter()
    counts = 2 * num_layers * model.num_local_experts + last
    found: Bytes = Counter({("stage", "all_reduce"): counts * 8})
    if model.router_aux_loss == "sequence" and model.router_aux_loss_coef:
        of_document = num_layers * model.num_local_experts * rank.wide.itemsize
        found |= {(axis, "all_reduce"): of_document for axis in ("tp", "cp") if getattr(plan, axis) > 1}
    return found


def _boundary(rank: Rank, *, first: bool, last: bool) -> Bytes:
    """Hidden states to the next stage, their gradients to the one before."""
    if rank.plan.pp == 1:
        return Counter()
    one = sum(math.prod(t.shape) * t.itemsize for t in boundary(rank.model, rank.own, rank.dtype))
    return Counter({("pp", "send"): one * ((not last) + (not first))})


def _end_of_step(rank: Rank) -> Bytes:
    """Gradients of what all ranks have whole, the gradient's norm, and what the step reports."""
    model, plan = rank.model, rank.plan
    found: Bytes = Counter()
    stage_numel = dense_numel = 0
    for module, count in rank.modules():
        stage_numel += count * module.stage_numel
        dense_numel += count * module.dense_numel
    if plan.stage > 1:
        found["stage", "all_reduce"] = stage_numel * rank.wide.itemsize
    if plan.dp * plan.cp > 1:
        found["dense", "all_reduce"] = dense_numel * rank.wide.itemsize
    if plan.world > 1:
        shape = model.with_nextn() if rank.num_nextn else model
        load = len(shape.expert_layers()) * model.num_local_experts
        sums = 6 + 2 * rank.num_nextn  # sums and counts, and whether to stop
        found["world", "all_reduce"] = rank.wide.itemsize + (sums + load) * 8
    return found
