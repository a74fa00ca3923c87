"""Whether a plan can be: every rule of it, one line each, before a process group exists.

A plan that cannot be is refused with all that is wrong with it, with the plans nearest to it that can be, and with the
smallest change of the batch that lets it be, where there is one.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.model.mixers import mixer_of
from leyden.parallel.plan import ParallelConfig, Plan
from leyden.parallel.planner.step import StepShape
from leyden.parallel.sequence import EXCHANGES

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "ep", "etp")
"""The sizes that a recipe may say."""

_NUM_NEAREST = 3


def check_plan(config: ParallelConfig, world: int, model: ModelConfig, step: StepShape | None = None) -> Plan:
    """The plan of ``config`` on ``world`` ranks, if this model can be trained under it.

    Args:
        config: the ``[parallel]`` section.
        world: how many ranks there are.
        model: the shape.
        step: of the optimizer steps; None: what depends on it is not asked.

    Raises:
        UserError: it cannot; all reasons, the nearest plans that would do, and the nearest batch.
    """
    plan = _changed(config, world, {}, config)
    problems = problems_of(plan, world, model, step)
    if not problems:
        return plan
    lines = [f"[parallel] cannot train this model on {world} rank{'s' if world > 1 else ''}:"]
    lines += [f"  - {problem}" for problem in problems]
    near = list(itertools.islice(_nearest(config, world, model, step), _NUM_NEAREST))
    if near:
        lines += ["Nearest plans that work:"] + [f"  - {_said(found, config)}" for found in near]
    else:
        lines += ["No sizes of the axes change that; change the model or the batch as said above."]
    if step is not None and (other := nearest_step(plan, world, model, step)) is not None:
        lines += [f"The smallest change of the batch with which this plan works: {_step_said(other, step)}."]
    raise UserError("\n".join(lines))


def problems_of(plan: Plan, world: int, model: ModelConfig, step: StepShape | None = None) -> list[str]:
    """Everything that stands in the way of ``plan``, a sentence each."""
    rules = [*_world(plan, world), *_heads_and_widths(plan, model), *_experts(plan, model), *_stages(plan, model)]
    if step is not None:
        rules += _rows(plan, step)
    return [sentence for broken, sentence in rules if broken]


Rule = tuple[bool, str]
"""Whether it is broken, and what to say then."""


def _world(plan: Plan, world: int) -> list[Rule]:
    product = f"pp x dp_replicate x dp_shard x cp x tp = {plan.pp} x {plan.dp_replicate} x {plan.dp_shard} x "
    product += f"{plan.cp} x {plan.tp} = {plan.world}"
    return [(plan.world != world, f"{product} ranks are asked for, and there are {world}.")]


def _heads_and_widths(plan: Plan, model: ModelConfig) -> list[Rule]:
    tp, dense = plan.tp, "dense" in model.with_nextn().mlp_kinds()
    width = model.dense_width
    kinds = [mixer_of(kind) for kind in dict.fromkeys(model.with_nextn().layer_types)]
    heads = dict(pair for mixer in kinds for pair in mixer.divided(model).items())
    return [
        *((count % tp > 0, f"tp = {tp} does not divide {count} {name}.") for name, count in heads.items()),
        *(
            (plan.cp > 1 and mixer not in EXCHANGES, f"cp = {plan.cp}: {mixer.title} layers cannot share a row.")
            for mixer in kinds
        ),
        (dense and width % tp > 0, f"tp = {tp} does not divide the feed-forward's width of {width}."),
        (model.vocab_size < tp, f"tp = {tp} is more than the vocabulary of {model.vocab_size}."),
    ]


def _experts(plan: Plan, model: ModelConfig) -> list[Rule]:
    num_experts, width, ep, etp = model.num_local_experts, model.intermediate_size, plan.ep, plan.etp
    if not num_experts:
        return [(ep * etp > 1, f"ep x etp = {ep} x {etp}, and the model has no experts; leave both at 1.")]
    ranks = f"dp_shard x cp x tp = {plan.dp_shard} x {plan.cp} x {plan.tp} = {plan.replica} ranks"
    return [
        (num_experts % ep > 0, f"ep = {ep} does not divide {num_experts} experts."),
        (width % etp > 0, f"etp = {etp} does not divide an expert's width of {width}."),
        (plan.replica % (ep * etp) > 0, f"ep x etp = {ep} x {etp} does not divide the {ranks} of a stage."),
    ]


def _stages(plan: Plan, model: ModelConfig) -> list[Rule]:
    pp, per_rank, layers = plan.pp, plan.settings.stages_per_rank, model.num_hidden_layers
    interleaved = plan.settings.pipeline_schedule == "interleaved"
    return [
        (pp * per_rank > layers, f"pp x stages_per_rank = {pp} x {per_rank} stages, and there are {layers} layers."),
        (interleaved and per_rank == 1, "pipeline_schedule 'interleaved' needs stages_per_rank of 2 or more."),
        (not interleaved and per_rank > 1, f"stages_per_rank = {per_rank} needs pipeline_schedule 'interleaved'."),
        (pp == 1 and per_rank > 1, f"stages_per_rank = {per_rank} needs pp of 2 or more."),
        (
            pp > 1 and model.num_nextn_predict_layers > 0,
            f"pp = {pp} puts the embedding and the modules for multi-token prediction, which read it, on two ranks; "
            "leave num_nextn_predict_layers out, or pp = 1.",
        ),
        (pp > 1 and model.tie_word_embeddings, f"pp = {pp} puts tied embeddings on two ranks; untie them, or pp = 1."),
    ]


def _rows(plan: Plan, step: StepShape) -> list[Rule]:
    dp, cp, tp, pp = plan.dp, plan.cp, plan.tp, plan.pp
    sequences, row, batches = step.sequences, step.row_tokens(plan), step.num_micro_batches
    interleaved = plan.settings.pipeline_schedule == "interleaved"
    rounds = max(1, batches // pp)
    return [
        (
            sequences % dp > 0,
            f"{dp} data ranks (dp_replicate x dp_shard) do not divide the {sequences} sequences of a micro-batch.",
        ),
        (sequences % dp == 0 and row % tp > 0, f"tp = {tp} does not divide a row of {row} tokens."),
        (row < cp * tp, f"cp x tp = {cp} x {tp} ranks are more than the {row} tokens of a row."),
        (
            pp > 1 and not interleaved and batches < pp,
            f"pp = {pp} stages need at least as many micro-batches a step, and there are {batches}.",
        ),
        (
            pp > 1 and interleaved and batches % rounds > 0,
            f"{batches} micro-batches do not fall into {rounds} rounds of pp = {pp}.",
        ),
    ]


def _nearest(config: ParallelConfig, world: int, model: ModelConfig, step: StepShape | None) -> Iterator[Plan]:
    """Plans that work, those with the fewest changed sizes first, and of these the least changed.

    Data ranks that ``config`` leaves open are no change, and a changed schedule is one.
    """
    axes = [axis for axis in AXES if axis != "dp_shard" or config.dp_shard is not None]
    # Data ranks that change become those that the other axes leave, the only number that can be right.
    sizes = {axis: [None] if axis == "dp_shard" else _possible(axis, world, model) for axis in axes}
    seen: set[Plan] = set()
    for num_changed in range(len(axes) + 1):
        found: dict[Plan, None] = {}  # in the order of the search, which is the same every time
        for settings in _schedules(config)[: None if num_changed else 1]:
            for changed in itertools.combinations(axes, num_changed - (settings != config)):
                for values in itertools.product(*(sizes[axis] for axis in changed)):
                    plan = _changed(config, world, dict(zip(changed, values, strict=True)), settings)
                    if plan.world == world and plan not in seen and not problems_of(plan, world, model, step):
                        found[plan] = None
        seen.update(found)
        yield from sorted(found, key=lambda plan: _distance(plan, config))


def _possible(axis: str, world: int, model: ModelConfig) -> list[int]:
    """The sizes of ``axis`` that divide the ranks and that this model allows, whatever the other axes are."""
    rules = (_heads_and_widths, _experts, _stages)
    divisors = [d for d in range(1, world + 1) if world % d == 0]
    alone = {d: replace(Plan(dp_shard=world), **{axis: d}) for d in divisors}
    return [d for d in divisors if not any(broken for rule in rules for broken, _ in rule(alone[d], model))]


def _changed(config: ParallelConfig, world: int, changes: dict[str, Any], settings: ParallelConfig) -> Plan:
    """The plan of ``config`` with other sizes and another schedule; data ranks left open are those that remain."""
    pp, dp_replicate, dp_shard, cp, tp, ep, etp = (changes.get(axis, getattr(config, axis)) for axis in AXES)
    dp_shard = dp_shard or max(1, world // (pp * dp_replicate * cp * tp))
    return Plan(pp, dp_replicate, dp_shard, cp, tp, ep, etp, settings)


def _schedules(config: ParallelConfig) -> list[ParallelConfig]:
    """As given, and with a schedule that goes with its number of stages."""
    plain = config.model_copy(update={"pipeline_schedule": "1f1b", "stages_per_rank": 1})
    interleaved = {"pipeline_schedule": "interleaved", "stages_per_rank": max(2, config.stages_per_rank)}
    return list(dict.fromkeys([config, plain, config.model_copy(update=interleaved)]))


def _distance(plan: Plan, config: ParallelConfig) -> float:
    """How many times larger or smaller the sizes are, in doublings."""
    asked = {axis: getattr(config, axis) or getattr(plan, axis) for axis in AXES}
    return sum(abs(math.log2(getattr(plan, axis) / asked[axis])) for axis in AXES)


def _said(plan: Plan, config: ParallelConfig) -> str:
    """As ``--set`` would be given it."""
    text = str(plan)
    for name in ("pipeline_schedule", "stages_per_rank"):
        if getattr(plan.settings, name) != getattr(config, name):
            text += f" {name}={getattr(plan.settings, name)}"
    return text


def nearest_step(plan: Plan, world: int, model: ModelConfig, step: StepShape) -> StepShape | None:
    """The step nearest to ``step`` that ``plan`` can take; None: no batch lets the plan be.

    Other micro-batches of the same batch are nearer than another batch, another number of micro-batches is nearer than
    other ones, and of steps that change as much, the one whose sizes change by the least factor is the nearest.
    """
    if problems_of(plan, world, model):
        return None
    sequences, count = step.sequences, step.num_micro_batches
    total = sequences * count

    def shape(size: int, number: int) -> StepShape:
        return StepShape(step.seq_len, size * step.seq_len, number)

    def works(size: int, number: int) -> bool:
        return not problems_of(plan, world, model, shape(size, number))

    # Data and tensor ranks divide multiples of ``grain`` sequences. A rule is of sizes alone, or of counts alone.
    grain = plan.dp * math.lcm(step.seq_len, plan.tp) // step.seq_len
    largest = 2 * max(sequences, -(-plan.dp * plan.cp * plan.tp // step.seq_len)) + grain
    sizes = [size for size in range(grain, largest + 1, grain) if works(size, plan.pp)]
    counts = [number for number in range(1, 2 * max(count, plan.pp) + 1) if works(sizes[0], number)]
    divisors = (size for size in range(grain, total + 1, grain) if total % size == 0)
    same_batch = [(size, total // size) for size in divisors if works(size, total // size)]
    other_count = [(sequences, number) for number in counts] if sequences in sizes else []
    candidates = same_batch or other_count or list(itertools.product(sizes, counts))
    return min((shape(*found) for found in candidates), key=lambda found: _step_distance(found, step))


def _step_distance(shape: StepShape, step: StepShape) -> float:
    """How much larger or smaller micro-batch and batch are, in doublings."""
    sizes = [(shape.micro_batch_tokens, step.micro_batch_tokens), (shape.tokens, step.tokens)]
    return sum(abs(math.log2(now / before)) for now, before in sizes)


def _step_said(shape: StepShape, step: StepShape) -> str:
    """As a recipe's stage would say it."""
    micro, batch = f"micro_batch_tokens = {shape.micro_batch_tokens}", f"batch_tokens = {shape.tokens}"
    if shape.micro_batch_tokens != step.micro_batch_tokens:
        micro += f" (now {step.micro_batch_tokens})"
    if shape.tokens == step.tokens:
        return micro
    return f"{batch} (now {step.tokens}) with {micro}"
