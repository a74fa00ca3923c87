"""The memory manager: slots and pages of running sequences, the prefix cache, and sequences swapped to the host.

Only what prefill computed on the grid of :data:`leyden.model.PAGE` is kept ("canonical"): it has the same bits in
whatever parts and company it was read, so a text that goes on from it has the bits of one that was read whole. What
decoding computed is never kept.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from leyden.model import PAGE, Pools
from leyden.serve.inserts import Insert, page_digest
from leyden.serve.memory.allocators import Pages, Slots
from leyden.serve.memory.holding import Holding, Swapped
from leyden.serve.memory.snapshots import Snapshots, copy_slot, slot_of
from leyden.serve.memory.tree import Node, PrefixTree
from leyden.serve.request import CacheUse

FIRST_RUNG = 4 * PAGE
"""Shorter beginnings are read again in no time: the ladder has no rungs there."""


@dataclass(frozen=True)
class MemoryUsage:
    """How full everything is.

    Attributes:
        states_used, states_total: slots.
        pages_used, pages_total: pages that running sequences use, and all there are.
        pages_kept: those that only the prefix cache keeps.
        snapshots: of states, in the prefix cache.
        snapshot_bytes_used, snapshot_bytes_total: theirs.
        swapped: sequences on the host.
        swap_bytes_used, swap_bytes_total: theirs.
        evictions: snapshots that made room for others, ever.
    """

    states_used: int
    states_total: int
    pages_used: int
    pages_total: int
    pages_kept: int
    snapshots: int
    snapshot_bytes_used: int
    snapshot_bytes_total: int
    swapped: int
    swap_bytes_used: int
    swap_bytes_total: int
    evictions: int


class EngineMemory:
    """The memory of an engine; for one thread.

    Args:
        pools: the slots and pages themselves.
        cache_bytes: host memory for snapshots, from which texts read before are gone on from; 0: none are kept.
        swap_bytes: host memory for sequences that had to make room for others.

    Attributes:
        pools: as given.
        holdings: of running sequences.
        swapped: sequences on the host.
    """

    def __init__(self, pools: Pools, *, cache_bytes: int, swap_bytes: int) -> None:
        self.pools = pools
        self.swap_bytes = swap_bytes
        self.snapshots = Snapshots(pools, cache_bytes)
        self.clear()

    def clear(self) -> None:
        """Nobody holds anything any more, and nothing is kept of what was read."""
        self.holdings: dict[Holding, None] = {}
        self.swapped: dict[Swapped, None] = {}
        self.slots = Slots(self.pools.num_states)
        self.pages = Pages(self.pools.num_pages)
        self.tree = PrefixTree(self.pages, len(self.snapshots))

    @property
    def max_tokens(self) -> int:
        """A sequence of more never fits."""
        return self.pages.count * PAGE

    def admit(self, tokens: Sequence[int], salt: str = "", inserts: Sequence[Insert] = ()) -> Holding | None:
        """Take a slot, and pages for a whole prompt; what was read of it before is taken over.

        It goes on from the deepest place strictly before its last token where a state was kept and all pages before
        it are. Texts of different salts have nothing in common, nor have pages with different inserts.

        Returns:
            None where it does not fit now; then nothing was let go.
        """
        blocks = _blocks(tokens, salt, inserts)
        chain = self.tree.walk(blocks[: (len(tokens) - 1) // PAGE])
        depth = max((node.depth for node in chain if node.snapshot is not None), default=0)
        holding = self._hold(chain[:depth], _num_pages(len(tokens)))
        if holding is None:
            return None
        holding.blocks = blocks
        holding.length = depth * PAGE
        holding.cache = _cache_use(chain, depth)
        holding.cuts = self._cuts(holding)
        if depth:
            snapshot = chain[depth - 1].snapshot
            assert snapshot is not None  # it lies where pages are used: nothing was let go there
            self.snapshots.load(snapshot, holding.state)
            self.tree.touch(chain[depth - 1])
        return holding

    def grow(self, holding: Holding, stop: int) -> bool:
        """See to pages for ``stop`` tokens in all; what only the cache keeps is let go for them.

        Returns:
            False where they cannot be had: then a sequence has to make room.
        """
        missing = _num_pages(stop) - len(holding.pages)
        if missing > 0:
            if not self.tree.make_room(missing):
                return False
            holding.pages += [self.pages.take() for _ in range(missing)]
        return True

    def cuts(self, holding: Holding) -> tuple[int, ...]:
        """The positions of its prompt where the reading must make a stop for the sake of a snapshot, rising.

        - The last one on the grid: whoever asks again, or says more, goes on from there.
        - Where it parts from the texts that were read before, if no state was kept there: what two texts share, a
          third one may.
        - The ladder: 1024, 2048, 4096, ... tokens, so that the first text that parts from it anywhere has half or
          more of what they share. A rung is left out where the beginning of the reading, or another cut, is within a
          quarter of its height: then it would save next to nothing.
        """
        return holding.cuts

    def commit_prefix(self, holding: Holding, position: int) -> None:
        """Say that prefill has read its prompt up to ``position``, on the grid, and that its state is that behind it.

        Its pages up to there are kept from now on, a snapshot if it is one of the cuts. ``holding.pages`` may change:
        where another sequence has read the same meanwhile, the two share its pages.
        """
        depth = position // PAGE
        if position % PAGE or not len(holding.nodes) <= depth <= len(holding.blocks):
            raise ValueError(
                f"position {position} is not on the grid of {PAGE}, not in the prompt, or behind the last."
            )
        self._adopt(holding, depth)
        if depth and position in holding.cuts:
            node = holding.nodes[-1]
            if node.snapshot is not None:
                self.tree.touch(node)
            elif (snapshot := self.tree.add_snapshot(node)) is not None:
                self.snapshots.store(snapshot, holding.state)

    def fork(self, holding: Holding, length: int) -> Holding | None:
        """Another sequence with the same first ``length`` tokens, which are all that was read.

        Whole pages are shared; the last one, if it is not full, and the state are copied.

        Returns:
            None where it does not fit now.
        """
        whole, rest = divmod(length, PAGE)
        if not self.slots.free or not self.tree.make_room(int(rest > 0)):
            return None
        pages = holding.pages[:whole]
        for page in pages:
            self.pages.share(page)
        if rest:
            pages.append(self.pages.take())
            for pool in self.pools.pages.values():
                pool[:, pages[-1]] = pool[:, holding.pages[whole]]
        copy = Holding(pages, self.slots.take(), holding.length, holding.cache)
        copy_slot(slot_of(self.pools, copy.state), slot_of(self.pools, holding.state))
        copy.blocks, copy.nodes = holding.blocks[:whole], holding.nodes[:whole]
        self.holdings[copy] = None
        return copy

    def states(self, num_states: int) -> list[int] | None:
        """Further slots, for the states behind the tokens of a draft; None where there are not so many."""
        return [self.slots.take() for _ in range(num_states)] if num_states <= self.slots.free else None

    def give_back(self, states: Sequence[int]) -> None:
        """The end of what :meth:`states` gave."""
        for state in states:
            self.slots.give_back(state)

    def release(self, holding: Holding) -> None:
        """The end of a sequence. What is in the prefix cache stays as far as a snapshot makes it of use."""
        del self.holdings[holding]
        self.slots.give_back(holding.state)
        for page in holding.pages:
            self.pages.drop(page)
        if holding.nodes:
            self.tree.prune(holding.nodes[-1])
        holding.pages, holding.nodes, holding.state = [], [], -1

    def swap_out(self, holding: Holding) -> Swapped | None:
        """Move a sequence to the host, so that others have its slot and pages.

        Returns:
            None where the host memory for this is full; then nothing happened.
        """
        if self._swap_bytes_used + Swapped.bytes_of(holding, self.pools) > self.swap_bytes:
            return None
        swapped = Swapped(holding, self.pools, self.swapped)
        self.release(holding)
        return swapped

    def swap_in(self, swapped: Swapped) -> Holding | None:
        """Move a sequence back, into the same :class:`Holding` with other pages and another slot.

        Returns:
            None where it does not fit now; then nothing happened.
        """
        holding = swapped.holding
        chain = self.tree.walk(holding.blocks[: swapped.num_cached])
        live = [node for node in chain if node.page is not None]
        back = self._hold(live, swapped.num_pages)
        if back is None:
            return None
        del self.holdings[back]
        self.holdings[holding] = None
        holding.pages, holding.nodes, holding.state = back.pages, back.nodes, back.state
        swapped.restore(num_shared=len(live))
        self._adopt(holding, swapped.num_cached)
        swapped.discard()
        return holding

    def kept(self, tokens: Sequence[int], salt: str = "") -> tuple[list[int], dict[str, torch.Tensor] | None]:
        """Of the longest beginning of ``tokens`` from which can be gone on, the pages, and a copy of the state.

        The state is what a slot holds, by name, [layers, ...] on the host; None, and no pages, where there is none.
        """
        chain = self.tree.walk(_blocks(tokens, salt))
        end = next((node for node in reversed(chain) if node.snapshot is not None), None)
        if end is None or end.snapshot is None:
            return [], None
        if self.pools.device.type == "cuda":
            torch.cuda.synchronize(self.pools.device)  # it may be on its way yet
        pages = [node.page for node in chain[: end.depth] if node.page is not None]
        return pages, {name: part.clone() for name, part in self.snapshots.of(end.snapshot).items()}

    @property
    def usage(self) -> MemoryUsage:
        """How full everything is."""
        pages, snapshots, each = self.pages, self.tree.snapshots, self.snapshots.bytes_each
        num_snapshots = snapshots.count - snapshots.free
        return MemoryUsage(
            states_used=self.slots.count - self.slots.free,
            states_total=self.slots.count,
            pages_used=pages.count - pages.free - pages.idle,
            pages_total=pages.count,
            pages_kept=pages.idle,
            snapshots=num_snapshots,
            snapshot_bytes_used=num_snapshots * each,
            snapshot_bytes_total=snapshots.count * each,
            swapped=len(self.swapped),
            swap_bytes_used=self._swap_bytes_used,
            swap_bytes_total=self.swap_bytes,
            evictions=self.tree.evictions,
        )

    @property
    def _swap_bytes_used(self) -> int:
        return sum(swapped.nbytes for swapped in self.swapped)

    def _hold(self, shared: Sequence[Node], num_pages: int) -> Holding | None:
        """A slot, and ``num_pages`` pages, the first ones those of ``shared``; None where they cannot be had."""
        if not self.slots.free:
            return None
        pages = [node.page for node in shared if node.page is not None]
        for page in pages:  # first of all, lest they be let go
            self.pages.share(page)
        if not self.tree.make_room(num_pages - len(pages)):
            for page in pages:
                self.pages.drop(page)
            return None
        pages += [self.pages.take() for _ in range(num_pages - len(pages))]
        holding = Holding(pages, self.slots.take(), 0, CacheUse(), nodes=list(shared))
        self.holdings[holding] = None
        return holding

    def _adopt(self, holding: Holding, depth: int) -> None:
        for index in range(len(holding.nodes), depth):
            parent = holding.nodes[-1] if holding.nodes else self.tree.root
            node = self.tree.adopt(parent, holding.blocks[index], holding.pages[index])
            assert node.page is not None
            holding.pages[index] = node.page
            holding.nodes.append(node)

    def _cuts(self, holding: Holding) -> tuple[int, ...]:
        if not len(self.snapshots):
            return ()
        end = len(holding.blocks) * PAGE
        kept = {holding.length, holding.cache.possible, end}
        rung = FIRST_RUNG
        while rung < end:
            if rung > holding.length and all(abs(rung - cut) > rung // 4 for cut in kept):
                kept.add(rung)
            rung *= 2
        return tuple(sorted(cut for cut in kept if cut > holding.length))


def _cache_use(chain: Sequence[Node], depth: int) -> CacheUse:
    live = sum(node.page is not None for node in chain)
    lost = {"no_snapshot": (live - depth) * PAGE, "evicted": (len(chain) - live) * PAGE}
    return CacheUse(len(chain) * PAGE, depth * PAGE, {reason: tokens for reason, tokens in lost.items() if tokens})


def _blocks(tokens: Sequence[int], salt: str, inserts: Sequence[Insert] = ()) -> list[bytes]:
    """The whole pages of ``tokens``, each as bytes; the first behind the salt, so that no other text begins like it.

    Behind a page with inserts stands what tells these from others.
    """
    content = array("q", tokens).tobytes()
    width = PAGE * array("q").itemsize
    blocks = [content[start : start + width] for start in range(0, len(content) - width + 1, width)]
    blocks = [block + page_digest(inserts, page * PAGE) for page, block in enumerate(blocks)] if inserts else blocks
    return [salt.encode() + blocks[0], *blocks[1:]] if blocks else []


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE)
