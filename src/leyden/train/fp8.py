"""Where a run can compute its matrix products in 8-bit tiles (:mod:`leyden.model.fp8`), and where it is refused.

Data ranks and pipeline stages compute what one process computes of the same micro-batches, bit by bit in each tile. The
other axes would cut tiles: a sum over tokens has tiles of 128 tokens of one row, which context, tensor and expert ranks
divide among them.
"""

from leyden.parallel import ParallelConfig

_CUT = ("cp", "tp", "ep", "etp")


def fp8_problem(parallel: ParallelConfig, *, adapters: bool) -> str | None:
    """Why a run cannot compute in 8-bit tiles, as a clause with what to do; None where it can.

    Args:
        parallel: how ranks divide the run.
        adapters: whether it trains adapters alone.
    """
    cut = [f"parallel.{axis} = {getattr(parallel, axis)}" for axis in _CUT if getattr(parallel, axis) > 1]
    if cut:
        return (
            f"train.fp8 = 'blocks' rounds tiles of 128 tokens and 128 columns, and {', '.join(cut)} would cut them, so "
            "that the ranks would compute other numbers than one process; divide the run by dp_replicate, dp_shard "
            "and pp, or leave train.fp8 out"
        )
    if parallel.compile:
        return (
            "train.fp8 = 'blocks' computes with autograd functions that parallel.compile = true does not compile; "
            "leave one of the two out"
        )
    if adapters:
        return (
            "train.fp8 = 'blocks' is of the products of weights that are trained, and train.lora leaves them as they "
            "are; leave one of the two out"
        )
    return None
