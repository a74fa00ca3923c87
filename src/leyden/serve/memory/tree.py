"""The prefix tree: which texts were read, in blocks of a page, and where their pages and snapshots lie.

A hybrid model goes on from a text read before only where it has both: the keys and values of all its tokens, and the
lightning layers' state at exactly its end. So a node of the tree is one block behind all those above it, and has a
page, and possibly a snapshot. The tree holds numbers of pages and snapshots; their contents are moved elsewhere.

Kept is what serves a hit: a page that no running sequence uses stays while a snapshot lies at its end or further on,
and no longer. Hence all memory of the cache is won back by letting go of snapshots. Nodes without a page ("ghosts")
stay for a while, so that it can be said what a larger cache would have saved, and where texts part.

Which snapshot goes first: the one with the largest age per token that would have to be read again without it. This
thins by itself where snapshots lie densely, as behind every turn of a long chat, and spares the only one of a long
text. (Marconi, arXiv 2411.19379, weighs recency and saved work by a sum with a tuned factor.)

Blocks are compared as they are, not by a hash alone: they are the keys of dictionaries.
"""

import heapq
from collections.abc import Iterator, Sequence

from leyden.model import PAGE
from leyden.serve.memory.allocators import Pages, Slots

_MAX_GHOSTS = 16_384
"""About 1.5 KB each; 4 million tokens."""

_CANDIDATES = 16
"""Of the least recently used snapshots, so many are weighed against each other."""


class Node:
    """One block of a text that was read.

    Attributes:
        parent: the block before; None for the root, which stands for the empty text.
        block: its tokens, as bytes.
        depth: blocks from the root to its end.
        children: the blocks that followed it, by their tokens.
        page: of its keys and values; None for a ghost.
        snapshot: of the state at its end; None where there is none.
        snapshots: how many there are here and further on.
        used: when the snapshot last served, in the tree's own time.
    """

    __slots__ = ("block", "children", "depth", "page", "parent", "snapshot", "snapshots", "used")

    def __init__(self, parent: "Node | None", block: bytes) -> None:
        self.parent = parent
        self.block = block
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[bytes, Node] = {}
        self.page: int | None = None
        self.snapshot: int | None = None
        self.snapshots = 0
        self.used = 0

    @property
    def position(self) -> int:
        """Tokens from the text's beginning to its end."""
        return self.depth * PAGE

    def path(self) -> Iterator["Node"]:
        """Itself, its parent, and so on; without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class PrefixTree:
    """Texts, their pages and their snapshots.

    Args:
        pages: shared with the running sequences.
        num_snapshots: at most so many.

    Attributes:
        root: the empty text.
        snapshots: the slots that they lie in.
        evictions: snapshots that made room for others.
    """

    def __init__(self, pages: Pages, num_snapshots: int) -> None:
        self.root = Node(None, b"")
        self.pages = pages
        self.snapshots = Slots(num_snapshots)
        self.evictions = 0
        self._time = 0
        self._by_use: dict[Node, None] = {}  # nodes with a snapshot, the least recently used first
        self._ghosts: dict[Node, None] = {}  # the oldest first, and every node before its parent

    def walk(self, blocks: Sequence[bytes]) -> list[Node]:
        """The nodes of the longest beginning of ``blocks`` that was ever read, as far as ghosts remember."""
        chain: list[Node] = []
        node = self.root
        for block in blocks:
            child = node.children.get(block)
            if child is None:
                break
            chain.append(child)
            node = child
        self._haunt(node for node in reversed(chain) if node.page is None)
        return chain

    def adopt(self, parent: Node, block: bytes, page: int) -> Node:
        """The node of ``block`` behind ``parent``, whose page from now on ``page``'s user uses in its place.

        Where it has a page of the same contents already, ``page`` is given back. The parent must have one.
        """
        node = parent.children.get(block)
        if node is None:
            node = parent.children[block] = Node(parent, block)
        if node.page is None:
            self._ghosts.pop(node, None)
            node.page = page
            self.pages.keep(page)
        elif node.page != page:
            self.pages.share(node.page)
            self.pages.drop(page)
        return node

    def touch(self, node: Node) -> None:
        """Its snapshot serves."""
        self._time += 1
        node.used = self._time
        self._by_use.pop(node, None)
        self._by_use[node] = None

    def add_snapshot(self, node: Node) -> int | None:
        """The slot for a snapshot at the end of ``node``, whose page is used; None where there is no room for any."""
        if not self.snapshots.count:
            return None
        if not self.snapshots.free:
            self._evict(self._least_worth())
        node.snapshot = self.snapshots.take()
        for above in node.path():
            above.snapshots += 1
        self.touch(node)
        return node.snapshot

    def make_room(self, num_pages: int) -> bool:
        """Let go of snapshots, the least recently used first, until so many pages are free.

        Returns:
            Whether they are. Where they cannot be, nothing is let go.
        """
        if self.pages.free >= num_pages:
            return True
        if self.pages.free + self.pages.idle < num_pages:
            return False
        # An inner snapshot frees no page: those further on need all pages before them.
        ends = [(node.used, node) for node in self._by_use if self._frees_pages(node)]
        heapq.heapify(ends)
        while self.pages.free < num_pages:
            _, node = heapq.heappop(ends)
            above = _next_above(node)
            self._evict(node)
            if above is not None and self._frees_pages(above):
                heapq.heappush(ends, (above.used, above))
        return True

    def prune(self, node: Node) -> None:
        """Free the pages of ``node`` and of those above it, as far as nobody uses them and no snapshot needs them."""
        gone = []
        for above in node.path():
            if above.page is None or above.snapshots or self.pages.users(above.page):
                break
            self.pages.let_go(above.page)
            above.page = None
            gone.append(above)
        self._haunt(gone)

    def _frees_pages(self, node: Node) -> bool:
        return node.snapshots == 1 and node.page is not None and not self.pages.users(node.page)

    def _least_worth(self) -> Node:
        oldest = [node for node, _ in zip(self._by_use, range(_CANDIDATES), strict=False)]
        return max(oldest, key=lambda node: (self._time - node.used) / _tokens_saved(node))

    def _evict(self, node: Node) -> None:
        assert node.snapshot is not None
        self.snapshots.give_back(node.snapshot)
        node.snapshot = None
        for above in node.path():
            above.snapshots -= 1
        del self._by_use[node]
        self.evictions += 1
        self.prune(node)

    def _haunt(self, nodes: Iterator[Node] | list[Node]) -> None:
        """Remember ghosts as the newest, each before its parent; forget the oldest where they are too many."""
        for node in nodes:
            self._ghosts.pop(node, None)
            self._ghosts[node] = None
        while len(self._ghosts) > _MAX_GHOSTS:
            oldest = next(iter(self._ghosts))
            del self._ghosts[oldest]
            assert oldest.parent is not None and not oldest.children
            del oldest.parent.children[oldest.block]


def _next_above(node: Node) -> Node | None:
    return next((above for above in node.path() if above is not node and above.snapshot is not None), None)


def _tokens_saved(node: Node) -> int:
    """Tokens from the next snapshot above, or from the beginning."""
    above = _next_above(node)
    return node.position - (0 if above is None else above.position)
