"""States kept in host memory, and how states and pages are copied between there and the device."""

import weakref
from collections.abc import Sequence

import torch

from leyden.core.transfers import on_device, sent
from leyden.model import Pools

_PAGES_AT_ONCE = 64
"""They are gathered on their way; so many bound the memory that this takes."""


class Snapshots:
    """Copies of states, in one block of host memory. len() says how many there can be.

    On a GPU they are pinned. Copies are queued behind the work that was queued before them, in order; so a slot may be
    read, overwritten and read again without waiting.

    Args:
        pools: whose states they are.
        limit_bytes: the block's size at most. Not more are made than there are pages, since each lies at one's end.

    Attributes:
        states: [N, lightning layers, H, K, K] float32.
        bytes_each: of one.
    """

    def __init__(self, pools: Pools, limit_bytes: int) -> None:
        layers, _, *shape = pools.states.shape
        self._pools = pools
        self.bytes_each = pools.states[:, :1].nbytes
        fitting = limit_bytes // max(1, self.bytes_each)
        # Memory that is never written to is never taken either: a large block costs nothing at first.
        self.states = torch.empty(min(fitting, pools.num_pages), layers, *shape)
        if pools.states.is_cuda and self.states.nbytes:
            self._pin()

    def _pin(self) -> None:
        """Register the block, since the allocator of pinned memory would round it up to a power of two."""
        cudart, device = torch.cuda.cudart(), self._pools.states.device
        assert cudart is not None
        place = self.states.data_ptr()
        with on_device(device):
            torch.cuda.check_error(cudart.cudaHostRegister(place, self.states.nbytes, 0))

        def free() -> None:  # called before the block itself is freed
            torch.cuda.synchronize(device)
            cudart.cudaHostUnregister(place)

        weakref.finalize(self, free).atexit = False

    def __len__(self) -> int:
        return len(self.states)

    def store(self, snapshot: int, slot: int) -> None:
        """Keep the state in ``slot``."""
        copy_state(self.states[snapshot], self._pools.states[:, slot])

    def load(self, snapshot: int, slot: int) -> None:
        """Put a kept state into ``slot``."""
        copy_state(self._pools.states[:, slot], self.states[snapshot])


def copy_state(to: torch.Tensor, of: torch.Tensor) -> None:
    """Copy [layers, H, K, K] layer by layer: only each layer of a slot is contiguous; the whole would take a detour."""
    for target, source in zip(to, of, strict=True):
        target.copy_(source, non_blocking=True)


def copy_pages(
    to: Sequence[torch.Tensor], places: Sequence[int], of: Sequence[torch.Tensor], sources: Sequence[int]
) -> None:
    """Copy pages between tensors [layers, P, PAGE, Hkv, D], possibly of two devices.

    Args:
        to, of: keys and values here and there.
        places, sources: pages of ``to``, and those of ``of`` that they become.
    """
    for target, source in zip(to, of, strict=True):
        for start in range(0, len(places), _PAGES_AT_ONCE):
            put = sent(torch.tensor(places[start : start + _PAGES_AT_ONCE]), target.device)
            got = sent(torch.tensor(sources[start : start + _PAGES_AT_ONCE]), source.device)
            for layer in range(len(target)):
                target[layer, put] = source[layer, got].to(target.device)
