"""What a sequence holds: on the device, and on the host once it had to make room."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Self

import torch

from leyden.model import Pools
from leyden.serve.memory.snapshots import copy_pages, copy_state
from leyden.serve.memory.tree import Node
from leyden.serve.request import CacheUse


@dataclass(eq=False)
class Holding:
    """What one sequence holds.

    Attributes:
        pages: for its tokens, in order; enough for its prompt from the start.
        state: the slot of its state. May be exchanged for one that :meth:`Memory.states` gave.
        length: tokens of its prompt that it need not read.
        cache: what of its prompt was read before.
        cuts: as :meth:`Memory.cuts` says.
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
    """A sequence that had to make room; it lies on the host until :meth:`Memory.swap_in` or :meth:`discard`.

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
        self._state = torch.empty_like(pools.states[:, 0], device="cpu")
        self._keys, self._values = (
            x.new_empty(x.shape[0], self.num_pages, *x.shape[2:], device="cpu") for x in (pools.keys, pools.values)
        )
        copy_state(self._state, pools.states[:, holding.state])
        here = range(self.num_pages)
        copy_pages((self._keys, self._values), here, (pools.keys, pools.values), holding.pages)
        register[self] = None

    @staticmethod
    def bytes_of(holding: Holding, pools: Pools) -> int:
        """Of host memory that ``holding`` would take."""
        page = pools.keys[:, :1].nbytes + pools.values[:, :1].nbytes
        return pools.states[:, :1].nbytes + len(holding.pages) * page

    @property
    def nbytes(self) -> int:
        """Of host memory."""
        return self._state.nbytes + self._keys.nbytes + self._values.nbytes

    def restore(self, num_shared: int) -> None:
        """Copy all back to where ``holding`` lies now, but for its first ``num_shared`` pages, which others kept."""
        pools, pages = self._pools, self.holding.pages
        copy_state(pools.states[:, self.holding.state], self._state)
        missing = range(num_shared, self.num_pages)
        copy_pages((pools.keys, pools.values), pages[num_shared:], (self._keys, self._values), missing)

    def discard(self) -> None:
        """Give the host memory back; the sequence is gone. Nothing happens the second time."""
        self._register.pop(self, None)
