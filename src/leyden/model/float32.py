"""Modules whose parameters and buffers stay float32 whatever the model is cast to."""

from collections.abc import Callable
from typing import Self

import torch
from torch import nn


class Float32Module(nn.Module):
    """Norms, the router and the slopes: ``model.to(bfloat16)`` moves them but leaves them float32.

    Slopes and decays rounded to bfloat16 make the slowest heads forget nothing or too much, and a router rounded so
    sends tokens elsewhere; a cast to float64 is followed, since it rounds nothing.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def widest(tensor: torch.Tensor) -> torch.Tensor:
            new = fn(tensor)
            if new.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(new.device)
            return new

        return super()._apply(widest, recurse)
