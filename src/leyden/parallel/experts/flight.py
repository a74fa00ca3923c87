"""An all-to-all that is under way."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

# The functional collectives (what torch.distributed traces and DTensor calls): the result of an exchange is then the
# value of an op, which selective checkpointing can keep; dist.all_to_all_single writes into an argument.
_all_to_all = torch.ops._c10d_functional.all_to_all_single
_wait = torch.ops._c10d_functional.wait_tensor


@dataclass
class Flight:
    """Rows that were sent and rows that are coming; both stay in memory until :meth:`arrive`."""

    sent: torch.Tensor
    coming: torch.Tensor

    def arrive(self) -> torch.Tensor:
        """The rows that came: the host waits on gloo, the current stream on NCCL."""
        return _wait(self.coming)


def depart(x: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Flight:
    """Send rows of x [sum(sent), ...]: the first ``sent[0]`` to rank 0, and so on; [sum(received), ...] will come."""
    x = x.contiguous()
    return Flight(x, _all_to_all(x, list(received), list(sent), group.group_name))
