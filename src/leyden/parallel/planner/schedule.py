"""What a rank of the pipeline does in a step, and when: its stages, its order of forwards and backwards.

The orders are those of torch.distributed.pipelining (1F1B, arXiv 2006.09503; interleaved 1F1B, arXiv 2104.04473).
"""

import functools

from leyden.parallel.plan import Plan

Work = tuple[str, int]
"""``("forward" or "backward", the rank's stage)``, of some micro-batch."""


@functools.lru_cache(maxsize=1024)
def order_of_work(pp: int, stages_per_rank: int, num_micro_batches: int, pp_rank: int) -> tuple[Work, ...]:
    """A rank's forwards and backwards; which micro-batch each is follows, since those of a stage come in order."""
    if stages_per_rank == 1:
        ahead = min(num_micro_batches, pp - pp_rank)
        rest = num_micro_batches - ahead
        pairs = [("backward", 0), ("forward", 0)] * rest
        return (*[("forward", 0)] * ahead, *pairs, *[("backward", 0)] * ahead)
    rounds = max(1, num_micro_batches // pp)
    per_round = num_micro_batches // rounds
    total = num_micro_batches * stages_per_rank
    forwards = [("forward", step // per_round % stages_per_rank) for step in range(total)]
    backwards = [("backward", stages_per_rank - 1 - step // per_round % stages_per_rank) for step in range(total)]
    ahead = min(total, (stages_per_rank - 1) * per_round + 2 * (pp - 1 - pp_rank))
    mixed = [work for pair in zip(forwards[ahead:], backwards, strict=False) for work in pair]
    return (*forwards[:ahead], *mixed, *backwards[total - ahead :])


def gathers(plan: Plan, stage: int, num_micro_batches: int, *, is_layer: bool) -> tuple[int, int]:
    """How often FSDP gathers a module's weights, and reduces their gradients, in one step.

    Without a pipeline every micro-batch gathers before its forward, reduces in its backward and leaves nothing
    gathered; what was let go after the forward is gathered again. A pipeline reduces once, at the end; what a backward
    used stays for the forward after it.
    """
    settings = plan.settings
    lets_go = settings.reshard_after_forward and is_layer
    if plan.pp == 1:
        # The loss and the layers are two forwards of the outermost module, each with a backward of its own.
        return num_micro_batches * (2 if lets_go or not is_layer else 1), num_micro_batches
    here, count = False, 0
    for direction, local in order_of_work(plan.pp, settings.stages_per_rank, num_micro_batches, stage % plan.pp):
        if local == stage // plan.pp:
            count += not here
            here = direction == "backward" or not lets_go
    return count, 1
