"""The memory that one sequence holds: on the device, or on the host after it was preempted."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Self

import torch

from leyden.model import Pools
from leyden.serve.memory.snapshots import copy_pages, copy_slot, slot_of
from leyden.serve.memory.tree import Node
from leyden.serve.request import CacheUse


@dataclass(eq=False)
class Holding:
    """What one sequence holds.

    Attributes:
        pages: for its tokens, in order; enough for its prompt from the start.
        state: the slot of its state. May be exchanged for one that :meth:`EngineMemory.states` gave.
        length: tokens of its prompt that it need not read.
        cache: what of its prompt was read before.
        cuts: as :meth:`EngineMemory.cuts` says.
        blocks: its prompt's whole pages of tokens.
        nodes: where its first pages lie in the tree of what was read.
    """

    pages: list[int]
    state: int
    length: int
    cache: CacheUse
    cuts: tuple[int, ...] = ()
    blocks: list[bytes] = field(default_factory=list, repr=False)
    nodes: list[Node] = field(default_factory=list, repr=False)


class Swapped:
    """A sequence that had to make room; it lies on the host until :meth:`EngineMemory.swap_in` or :meth:`discard`.

    Args:
        holding: what it holds yet, and is then to let go.
        pools: in which that lies.
        register: of all that are on the host; it takes itself out when it is discarded.

    Attributes:
        holding: as given; the same one serves again when it comes back.
        num_pages: that it needs then.
        num_cached: how many of them were in the tree of what was read.
    """

    def __init__(self, holding: Holding, pools: Pools, register: MutableMapping[Self, None]) -> None:
        self.holding = holding
        self.num_pages = len(holding.pages)
        self.num_cached = len(holding.nodes)
        self._pools = pools
        self._register = register
        self._slot = {
            name: torch.empty_like(part, device="cpu") for name, part in slot_of(pools, holding.state).items()
        }
        self._pages = {
            name: x.new_empty(x.shape[0], self.num_pages, *x.shape[2:], device="cpu") for name, x in pools.pages.items()
        }
        copy_slot(self._slot, slot_of(pools, holding.state))
        copy_pages(self._pages, range(self.num_pages), pools.pages, holding.pages)
        register[self] = None

    @staticmethod
    def bytes_of(holding: Holding, pools: Pools) -> int:
        """Of host memory that ``holding`` would take."""
        slot, page = (sum(x[:, :1].nbytes for x in memory.values()) for memory in (pools.slots, pools.pages))
        return slot + len(holding.pages) * page

    @property
    def nbytes(self) -> int:
        """Of host memory."""
        return sum(x.nbytes for x in (*self._slot.values(), *self._pages.values()))

    def restore(self, num_shared: int) -> None:
        """Copy all back to where ``holding`` lies now, but for its first ``num_shared`` pages, which others kept."""
        pools, pages = self._pools, self.holding.pages
        copy_slot(slot_of(pools, self.holding.state), self._slot)
        copy_pages(pools.pages, pages[num_shared:], self._pages, range(num_shared, self.num_pages))

    def discard(self) -> None:
        """Give the host memory back; the sequence is gone. Nothing happens the second time."""
        self._register.pop(self, None)
