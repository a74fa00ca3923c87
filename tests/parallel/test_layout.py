"""Layouts of a row over context ranks: even in tokens and in work, and what queries see in them."""

import itertools
import random

import pytest
import torch

from leyden.model import RowPart
from leyden.parallel.sequence.layout import SequenceLayout, _pairs, _starts, balanced, contiguous, ring_time, steps
from leyden.parallel.sequence.switch import Route

TOKENS = 16384


def documents_of(kind: str, tokens: int, seed: int = 0) -> tuple[int, ...]:
    """Bounds of a packed row: one document, a long one before short ones, lengths as in a corpus, or short ones."""
    drawn = random.Random(seed)
    length = {
        "one": lambda: tokens,
        "long and short": lambda: tokens // 2 if len(bounds) == 1 else drawn.randint(50, 2000),
        "corpus": lambda: int(drawn.lognormvariate(7, 1.5)) + 1,
        "short": lambda: drawn.randint(1, 600),
    }[kind]
    bounds = [0]
    while bounds[-1] < tokens:
        bounds.append(min(tokens, bounds[-1] + length()))
    return tuple(bounds)


def uneven(layout: SequenceLayout) -> float:
    """The most work of a rank over the mean."""
    work = layout.work().sum(1)
    return float(work.max() * len(work) / work.sum())


def whole(layout: SequenceLayout, tokens: int) -> bool:
    return torch.equal(torch.cat(layout.positions).sort().values, torch.arange(tokens))


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_one_document_is_a_zigzag(ranks: int) -> None:
    bounds = [64 * block for block in range(2 * ranks + 1)]
    layout = balanced(ranks, (0, bounds[-1]))
    for rank, positions in enumerate(layout.positions):
        mine = [positions_of(bounds, rank), positions_of(bounds, 2 * ranks - 1 - rank)]
        assert torch.equal(positions, torch.cat(mine))
    work = layout.work()
    assert uneven(layout) == 1.0 and ring_time(work) < 1.02
    # By hand: of 64 n tokens, a rank's share of all n (n + 1) / 2 pairs; contiguous, the last has the most.
    pairs = bounds[-1] * (bounds[-1] + 1) // 2
    assert int(work.sum()) == pairs and int(work.sum(1)[0]) == pairs // ranks
    parts = contiguous(tuple(bounds[::2]), (0, bounds[-1]))
    assert uneven(parts) == pytest.approx((2 * ranks - 1) / ranks, rel=0.01)


def positions_of(bounds: list[int], block: int) -> torch.Tensor:
    return torch.arange(bounds[block], bounds[block + 1])


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("kind", ["long and short", "corpus", "short"])
def test_random_documents_are_even(kind: str, ranks: int) -> None:
    for seed in range(5):
        documents = documents_of(kind, TOKENS - seed, seed)
        layout = balanced(ranks, documents)
        assert whole(layout, TOKENS - seed)
        assert max(layout.sizes) - min(layout.sizes) <= 32  # blocks differ by a token, and a rank has 32 at most
        assert uneven(layout) < 1.05
        if kind != "short":  # whose work is little, and whose documents any cut divides
            assert ring_time(layout.work()) < 1.1
            parts = contiguous(tuple((TOKENS - seed) * rank // ranks for rank in range(ranks + 1)), documents)
            assert uneven(parts) > 1.1 and ring_time(parts.work()) > 1.1


def test_a_ring_waits_for_its_slowest_neighbour() -> None:
    assert ring_time(torch.ones(3, 3, dtype=torch.int64)) == 1.0
    own = torch.eye(4, dtype=torch.int64)
    assert ring_time(own) == 1.0
    own[1, 1] = 5  # of mean 2
    assert ring_time(own) == 2.5
    # Both work 4, rank 0 at step 0 and rank 1 at step 1, for which rank 0 sent its keys as it began: side by side.
    assert ring_time(torch.tensor([[4, 0], [4, 0]])) == 1.0
    # Rank 1 works at step 2 with keys that rank 0 passes on when it is done with its step 0: one behind the other.
    assert ring_time(torch.tensor([[4, 0, 0], [0, 0, 4], [0, 0, 0]])) == 3.0


@pytest.mark.parametrize("even", [False, True])
def test_queries_see_their_documents_up_to_themselves(even: bool) -> None:
    drawn = random.Random(2)
    for _ in range(30):
        tokens, ranks = drawn.randint(1, 60), drawn.randint(2, 5)
        documents = (0, *sorted(drawn.randint(0, tokens) for _ in range(drawn.randint(0, 8))), tokens)
        bounds = (0, *sorted(drawn.randint(0, tokens) for _ in range(ranks - 1)), tokens)
        document = [max(n for n, bound in enumerate(documents[:-1]) if bound <= t) for t in range(tokens)]
        for rank in range(ranks):
            layout, seen = steps(RowPart(bounds, rank, documents), even, torch.device("cpu"))
            assert whole(layout, tokens)
            for step, keys in zip(seen, layout.positions, strict=True):
                for row, query in enumerate(layout.positions[rank].tolist()):
                    visible = [document[key] == document[query] and key <= query for key in keys.tolist()]
                    expected = [n for n, sees in enumerate(visible) if sees]
                    found = [] if step is None else list(range(int(step.first[row]), int(step.last[row])))
                    assert found == expected
                if step is not None:
                    assert all(bool((x.diff() >= 0).all()) for x in (step.first, step.last))


def test_routes_take_every_token_to_its_place() -> None:
    drawn = random.Random(3)
    for _ in range(30):
        tokens, ranks = drawn.randint(1, 60), drawn.randint(2, 5)
        documents = (0, *sorted(drawn.randint(0, tokens) for _ in range(drawn.randint(0, 8))), tokens)
        bounds = (0, *sorted(drawn.randint(0, tokens) for _ in range(ranks - 1)), tokens)
        routes = [Route.of(RowPart(bounds, rank, documents), torch.device("cpu")) for rank in range(ranks)]
        sent = [(torch.arange(*bounds[r : r + 2])[route.order]).split(route.sent) for r, route in enumerate(routes)]
        layout = balanced(ranks, documents)
        for rank, route in enumerate(routes):
            arrived = [pieces[rank] for pieces in sent]
            assert [len(piece) for piece in arrived] == list(route.received)
            assert torch.equal(torch.cat(arrived), layout.positions[rank])
            assert torch.equal(route.order[route.inverse], torch.arange(len(route.order)))


def test_pairs_are_what_queries_see() -> None:
    """The counts by which blocks are dealt, against counting."""
    drawn = random.Random(4)
    for _ in range(30):
        tokens = drawn.randint(1, 40)
        documents = (0, *sorted(drawn.randint(0, tokens) for _ in range(drawn.randint(0, 6))), tokens)
        starts, cuts = _starts(documents), sorted(drawn.randint(0, tokens) for _ in range(4))
        bounds, position = torch.tensor([0, *cuts, tokens]), torch.arange(tokens)
        visible = (position <= position[:, None]) & (position >= starts[:, None])
        spans = [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]
        expected = torch.tensor([[int(visible[rows, keys].sum()) for keys in spans] for rows in spans])
        assert torch.equal(_pairs(bounds, starts), expected)
