"""An audit of an engine's memory: every slot, page, snapshot and byte is counted anew and compared.

For tests and for proofs under load; it looks at everything, and into what is private to its neighbours.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from leyden.serve.memory.allocators import Pages, Slots
from leyden.serve.memory.memory import EngineMemory
from leyden.serve.memory.tree import Node, PrefixTree


def audit(memory: EngineMemory, lent_states: Iterable[int] = ()) -> None:
    """Compare the books of ``memory`` with what is held.

    Args:
        memory: between two steps.
        lent_states: what :meth:`EngineMemory.states` gave and has not got back.

    Raises:
        RuntimeError: something is leaked, held twice, or not where it should be.
    """
    _slots(memory.slots, [*(holding.state for holding in memory.holdings), *lent_states], "state")
    nodes = list(_below(memory.tree.root))
    kept = [node.page for node in nodes if node.page is not None]
    users = Counter(page for holding in memory.holdings for page in holding.pages)
    _pages(memory.pages, users, kept)
    _slots(memory.tree.snapshots, [node.snapshot for node in nodes if node.snapshot is not None], "snapshot")
    _tree(memory.tree, nodes)
    for holding in memory.holdings:
        for node, page, block in zip(holding.nodes, holding.pages, holding.blocks, strict=False):
            _must(node.page == page and node.block == block, f"page {page} is not that of its block in the tree")
            _must(node.parent is memory.tree.root or node.parent in holding.nodes, "a path has a gap")
    usage = memory.usage
    _must(usage.swap_bytes_used <= usage.swap_bytes_total, "more was swapped out than allowed")
    _must(usage.pages_used == len(users) and usage.pages_used + usage.pages_kept <= usage.pages_total, "usage of pages")


def _slots(slots: Slots, held: list[int], name: str) -> None:
    _must(len(set(held)) == len(held), f"a {name} slot is held twice")
    taken = {slot for slot in range(slots.count) if slots._taken[slot]}
    _must(taken == set(held), f"{name} slots {taken ^ set(held)} are leaked or held without being taken")
    _must(sorted([*slots._free, *held]) == list(range(slots.count)), f"the list of free {name} slots is wrong")


def _pages(pages: Pages, users: Counter[int], kept: list[int]) -> None:
    _must(len(set(kept)) == len(kept), "two nodes have one page")
    for page in range(pages.count):
        _must(pages.users(page) == users[page], f"page {page}: {pages.users(page)} users noted, {users[page]} found")
        _must(bool(pages._kept[page]) == (page in kept), f"page {page} is kept by no node, or not noted as kept")
    _must(sorted([*pages._free, *(set(kept) | set(users))]) == list(range(pages.count)), "free pages are wrong")
    _must(pages.idle == len(set(kept) - set(users)), f"{pages.idle} idle pages noted")


def _tree(tree: PrefixTree, nodes: list[Node]) -> None:
    for node in nodes:
        assert node.parent is not None
        name = f"the node at {node.position}"
        _must(node.depth == node.parent.depth + 1, f"{name} has the wrong depth")
        here = node.snapshot is not None
        _must(node.snapshots == here + sum(child.snapshots for child in node.children.values()), f"{name}: snapshots")
        _must((node.page is None) == (node in tree._ghosts), f"{name} is no ghost, or not noted as one")
        _must(here == (node in tree._by_use), f"{name} has a snapshot that is not noted, or the other way round")
        if node.page is None:
            _must(not here, f"{name} has a snapshot without its page")
            _must(all(child.page is None for child in node.children.values()), f"{name} is a gap in a text")
        else:
            _must(bool(node.snapshots or tree.pages.users(node.page)), f"{name} is kept for nothing")
    _must(len(tree._ghosts) + len(tree._by_use) <= len(nodes), "nodes are noted that are not in the tree")
    order = {node: number for number, node in enumerate(tree._ghosts)}
    for node, number in order.items():
        assert node.parent is not None
        _must(order.get(node.parent, number + 1) > number, "a ghost would be forgotten before what follows it")


def _below(root: Node) -> Iterator[Node]:
    waiting = list(root.children.values())
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(what)
