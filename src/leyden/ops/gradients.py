"""Whether autograd will ask for gradients of a call."""

import torch


def backward_may_follow(*inputs: object) -> bool:
    """Whether a backward may come, so that what it needs is worth computing or keeping.

    This is asked before ``Function.apply``: inside of a forward gradients are always off, and ``needs_input_grad``
    speaks of the inputs alone, also under ``no_grad`` and in inference mode.

    Args:
        inputs: what the op is differentiable in; what is no tensor does not count.
    """
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)
