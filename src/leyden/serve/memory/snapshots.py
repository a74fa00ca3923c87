"""Snapshots of lightning states in host memory, and copies of states and pages between host and device."""

import weakref
from collections.abc import Mapping, Sequence

import torch

from leyden.core.transfers import on_device, sent
from leyden.model import Pools

_PAGES_AT_ONCE = 64
"""They are gathered on their way; so many bound the memory that this takes."""


class Snapshots:
    """Copies of slots, in one block of host memory for each of their tensors. len() says how many there can be.

    On a GPU they are pinned. Copies are queued behind the work that was queued before them, in order; so a slot may be
    read, overwritten and read again without waiting.

    Args:
        pools: whose states they are.
        limit_bytes: the blocks' size at most. Not more are made than there are pages, since each lies at one's end.

    Attributes:
        slots: by the names of :attr:`leyden.model.Pools.slots`, [N, layers, ...].
        bytes_each: of one.
    """

    def __init__(self, pools: Pools, limit_bytes: int) -> None:
        self._pools = pools
        self.bytes_each = sum(memory[:, :1].nbytes for memory in pools.slots.values())
        self._count = min(limit_bytes // max(1, self.bytes_each), pools.num_pages)
        # Memory that is never written to is never taken either: a large block costs nothing at first.
        self.slots = {
            name: torch.empty(self._count, len(memory), *memory.shape[2:], dtype=memory.dtype)
            for name, memory in pools.slots.items()
        }
        if pools.device.type == "cuda":
            for block in self.slots.values():
                if block.nbytes:
                    self._pin(block)

    def _pin(self, block: torch.Tensor) -> None:
        """Register a block, since the allocator of pinned memory would round it up to a power of two."""
        cudart, device = torch.cuda.cudart(), self._pools.device
        assert cudart is not None
        place = block.data_ptr()
        with on_device(device):
            torch.cuda.check_error(cudart.cudaHostRegister(place, block.nbytes, 0))

        def free() -> None:  # called before the block itself is freed
            torch.cuda.synchronize(device)
            cudart.cudaHostUnregister(place)

        weakref.finalize(self, free).atexit = False

    def __len__(self) -> int:
        return self._count

    def store(self, snapshot: int, slot: int) -> None:
        """Keep what is in ``slot``."""
        copy_slot(self.of(snapshot), slot_of(self._pools, slot))

    def load(self, snapshot: int, slot: int) -> None:
        """Put a kept state into ``slot``."""
        copy_slot(slot_of(self._pools, slot), self.of(snapshot))

    def of(self, snapshot: int) -> dict[str, torch.Tensor]:
        """A kept state: of each tensor of a slot, [layers, ...]."""
        return {name: block[snapshot] for name, block in self.slots.items()}


def slot_of(pools: Pools, slot: int) -> dict[str, torch.Tensor]:
    """What is in a slot, by name: views [layers, ...]."""
    return {name: memory[:, slot] for name, memory in pools.slots.items()}


def copy_slot(to: Mapping[str, torch.Tensor], of: Mapping[str, torch.Tensor]) -> None:
    """Copy [layers, ...] layer by layer: only each layer of a slot is contiguous; the whole would take a detour."""
    for name, targets in to.items():
        for target, source in zip(targets, of[name], strict=True):
            target.copy_(source, non_blocking=True)


def copy_pages(
    to: Mapping[str, torch.Tensor], places: Sequence[int], of: Mapping[str, torch.Tensor], sources: Sequence[int]
) -> None:
    """Copy pages between tensors [layers, P, PAGE, ...], possibly of two devices.

    Args:
        to, of: by name, here and there; what ``to`` has is copied.
        places, sources: pages of ``to``, and those of ``of`` that they become.
    """
    for name, target in to.items():
        source = of[name]
        for start in range(0, len(places), _PAGES_AT_ONCE):
            put = sent(torch.tensor(places[start : start + _PAGES_AT_ONCE]), target.device)
            got = sent(torch.tensor(sources[start : start + _PAGES_AT_ONCE]), source.device)
            for layer in range(len(target)):
                target[layer, put] = source[layer, got].to(target.device)
