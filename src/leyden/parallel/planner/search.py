"""The best plans for a number of ranks: all that can be are listed, those that fit are ranked by their step time."""

from collections.abc import Iterator
from dataclasses import dataclass

from leyden.core.errors import UserError
from leyden.model import ModelConfig
from leyden.parallel.mesh import coordinates
from leyden.parallel.plan import ParallelConfig, Plan
from leyden.parallel.planner.check import problems_of
from leyden.parallel.planner.memory import RankMemory, predict_memory
from leyden.parallel.planner.rank import MomentBytes, Rank
from leyden.parallel.planner.step import StepShape
from leyden.parallel.planner.time import Machine, StepTime, predict_time

_SPARE = 0.9
"""Of a rank's memory, what a plan may use: allocators waste some, and libraries take some."""
_CONTEXT_TOKENS = 1024
"""Of a sequence, what a context rank has at least, wherever other axes can divide the work instead."""
_MODES = ("none", "selective", "full")


@dataclass(frozen=True)
class Candidate:
    """A plan that can be, with what is predicted of it."""

    plan: Plan
    step: StepShape
    memory: RankMemory
    time: StepTime


def search(
    model: ModelConfig,
    world: int,
    step: StepShape,
    machine: Machine,
    *,
    best: int = 5,
    moments: MomentBytes | None = None,
) -> list[Candidate]:
    """The ``best`` plans by step time, fastest first.

    A plan's micro-batches are as large as the step's, or one sequence a data rank where that is less or where a
    pipeline is to be filled. Of the modes of recomputation the one with which a plan is fastest and fits is taken.
    Tensor and expert-tensor ranks stay within a node, and experts travel in two groups of tokens.

    Args:
        model: the shape.
        world: the ranks.
        step: the sequences' length, and the tokens of a step and of a micro-batch.
        machine: what a rank has.
        best: how many plans are wanted.
        moments: what the optimizer remembers, as of :class:`Rank`.

    Raises:
        UserError: nothing divides the step among the ranks, or nothing fits.
    """
    possible = list(_possible(model, world, step, machine, _CONTEXT_TOKENS))
    possible = possible or list(_possible(model, world, step, machine, 1))
    if not possible:
        raise UserError(
            f"no plan divides steps of {step.tokens // step.seq_len} sequences of {step.seq_len} tokens among {world} "
            f"ranks ({machine.ranks_per_node} a node). Give another number of ranks, or more tokens a step."
        )
    timed = [
        (predict_time(Rank(model, plan, own, coordinates(plan, 0)), machine), plan, own)
        for without, own in possible
        for plan in (_with_mode(without, mode) for mode in _MODES)
    ]
    found: dict[str, Candidate] = {}
    least: tuple[float, Plan] | None = None
    for time, plan, own in sorted(timed, key=lambda entry: entry[0].seconds):  # stable: less recomputation first
        if str(plan) in found:  # with less recomputation
            continue
        ranks = (Rank(model, plan, own, at, moments=moments) for at in _places(plan))
        memory = max(map(predict_memory, ranks), key=lambda memory: memory.peak)
        if least is None or memory.peak < least[0]:
            least = memory.peak, plan
        if memory.peak <= _SPARE * machine.memory_bytes:
            found[str(plan)] = Candidate(plan, own, memory, time)
            if len(found) == best:
                break
    if not found:
        assert least is not None, "at least one plan was looked at"
        closest = f"; the nearest is {least[1]} with {least[0] / 1e9:.0f} GB"
        raise UserError(
            f"no plan of {world} ranks fits {_SPARE:.0%} of {machine.memory_bytes / 1e9:.0f} GB a rank{closest}. "
            "Give more ranks or memory, or a smaller micro-batch."
        )
    return list(found.values())


def _possible(
    model: ModelConfig, world: int, step: StepShape, machine: Machine, context_tokens: int
) -> Iterator[tuple[Plan, StepShape]]:
    """Plans without problems, each with the step as it divides it; a context rank has at least ``context_tokens``."""
    divisors = [d for d in range(1, world + 1) if world % d == 0]
    near = [d for d in divisors if d <= machine.ranks_per_node]
    for tp in near:
        for pp in (d for d in divisors if d <= model.num_hidden_layers):
            for cp in (d for d in divisors if d <= max(1, step.seq_len // context_tokens)):
                if world % (tp * pp * cp):
                    continue
                dp = world // (tp * pp * cp)
                own = _divided(step, dp, pp)
                if own is None or problems_of(plan := Plan(pp, 1, dp, cp, tp), world, model, own):
                    continue
                for ep, etp in _expert_sizes(model, plan.replica, near):
                    settings = ParallelConfig(token_groups=2 if ep * etp > 1 else 1)
                    yield Plan(pp, 1, dp, cp, tp, ep, etp, settings), own


def _expert_sizes(model: ModelConfig, replica: int, near: list[int]) -> Iterator[tuple[int, int]]:
    if not model.num_local_experts:
        yield 1, 1
        return
    for ep in (d for d in range(1, model.num_local_experts + 1) if model.num_local_experts % d == 0):
        for etp in near:
            if replica % (ep * etp) == 0 and model.intermediate_size % etp == 0:
                yield ep, etp


def _divided(step: StepShape, dp: int, pp: int) -> StepShape | None:
    """The step's tokens in micro-batches of the given size, or of one sequence a data rank where that is less.

    A pipeline takes them as small as that, so that there are many. None: there are too few sequences.
    """
    sequences = step.tokens // step.seq_len
    if sequences % dp:
        return None
    per_rank = max(1, step.sequences // dp) if pp == 1 else 1
    while sequences // dp % per_rank:
        per_rank -= 1
    return StepShape(step.seq_len, per_rank * dp * step.seq_len, sequences // dp // per_rank)


def _with_mode(plan: Plan, mode: str) -> Plan:
    settings = plan.settings.model_copy(update={"activation_checkpointing": mode})
    return Plan(plan.pp, plan.dp_replicate, plan.dp_shard, plan.cp, plan.tp, plan.ep, plan.etp, settings)


def _places(plan: Plan) -> list[dict[str, int]]:
    """A rank of the first stage, which holds most micro-batches, and one of the last, which has the loss."""
    return [coordinates(plan, rank) for rank in sorted({0, plan.world - 1} if plan.pp > 1 else {0})]
