"""Detection of NaN and infinity in the results of a computation."""

import torch


def all_finite(*tensors: torch.Tensor) -> bool:
    """Whether the sums of all of them are finite; one pass over memory.

    An overflowing sum of finite numbers counts as an infinity too. Where a compiler traces, which cannot branch on
    values, all is taken to be finite.
    """
    if torch.compiler.is_compiling():
        return True
    return bool(
        torch.stack([x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tensors]).isfinite().all()
    )
