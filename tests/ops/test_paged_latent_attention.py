"""Absorbed latent attention over pages against its formula in float64: ragged lengths, scattered pages, many heads."""

import importlib
import math

import pytest
import torch
from exactness import assert_within_noise, random

from leyden.ops import paged_latent_attention

launch = importlib.import_module("leyden.ops.paged_latent_attention.launch")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCALE = 0.37


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 tokens, or of multiples of that where they would be more than four."""
    for name, value in (("_LEAST", 64), ("_PIECES", 4)):
        monkeypatch.setattr(launch, name, value)


def draw(lengths: list[int], dtype: torch.dtype, *, page: int = 5, heads: int = 6, dim: int = 24) -> list[torch.Tensor]:
    """Pages dealt out in random order; what no sequence owns is NaN, and unused table entries point nowhere."""
    counts = [math.ceil(length / page) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(0)).tolist()
    table = torch.full((len(lengths), max(counts, default=0) + 1), -7, dtype=torch.int32)
    pages = torch.full((len(order), page, dim), torch.nan, dtype=dtype)
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = [order.pop() for _ in range(count)]
        table[sequence, :count] = torch.tensor(mine, dtype=torch.int32)
        for index, at in enumerate(mine):
            left = min(page, length - index * page)
            pages[at, :left] = random(left, dim, dtype=dtype, seed=1000 * sequence + index)
    q = random(len(lengths), heads, dim, dtype=dtype, seed=77)
    return [q, pages, table, torch.tensor(lengths, dtype=torch.int32)]


def by_formula(q, pages, width, table, lengths):
    """Sequence by sequence in the dtype of the inputs."""
    rows = []
    for b, length in enumerate(lengths.tolist()):
        held = pages[table[b, : math.ceil(length / pages.shape[1])].long()].flatten(0, 1)[:length]
        rows.append(((q[b] @ held.mT) * SCALE).softmax(-1) @ held[:, :width])
    return torch.stack(rows)


def check(inputs: list[torch.Tensor], width: int, backend: str, device: str) -> None:
    q, pages, table, lengths = (x.to(device) for x in inputs)
    mine = paged_latent_attention(q, pages, width, SCALE, table, lengths, backend).cpu()
    q, pages, table, lengths = inputs
    exact = paged_latent_attention(q.double(), pages.double(), width, SCALE, table, lengths, "reference")
    assert mine.dtype == q.dtype
    assert mine.shape == (*q.shape[:2], width)
    assert_within_noise(mine, by_formula(q, pages, width, table, lengths), exact)
    empty = lengths == 0
    assert torch.equal(mine[empty], torch.zeros_like(mine[empty]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("heads", "width"), [(1, 24), (6, 17), pytest.param(70, 16, marks=pytest.mark.slow)])
def test_ragged_lengths(dtype: torch.dtype, backend: str, heads: int, width: int, device: str) -> None:
    """All of it values, and a part; more heads than a program takes."""
    check(draw([0, 1, 5, 34, 16], dtype, heads=heads), width, backend, device)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_several_pieces(dtype: torch.dtype, short_pieces: None, device: str) -> None:
    check(draw([0, 1, 63, 64, 65, 257, 300], dtype, page=16, heads=3), 20, "triton", device)


def test_the_width_of_released_models(device: str) -> None:
    check(draw([3, 40], torch.float32, dim=576, heads=4), 512, "triton", device)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_batches_of_nothing(backend: str, device: str) -> None:
    q, pages, table, lengths = (x.to(device) for x in draw([0, 0], torch.float32))
    found = paged_latent_attention(q, pages, 20, SCALE, table, lengths, backend)
    assert torch.equal(found, torch.zeros(2, 6, 20, device=device))
    assert paged_latent_attention(q[:0], pages, 20, SCALE, table[:0], lengths[:0], backend).shape == (0, 6, 20)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_sequence_has_its_bits_in_any_company(backend: str, device: str) -> None:
    q, pages, table, lengths = (x.to(device) for x in draw([70, 3, 129, 16], torch.float32))
    together = paged_latent_attention(q, pages, 20, SCALE, table, lengths, backend)
    for b in range(4):
        own = slice(b, b + 1)
        alone = paged_latent_attention(q[own], pages, 20, SCALE, table[own, :26].contiguous(), lengths[own], backend)
        assert torch.equal(alone[0], together[b])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda q, p, t, n: (q[..., :5], p, 3, t, n), "q .B, H, D., pages"),
        (lambda q, p, t, n: (q, p, 25, t, n), "a width from 1 to D"),
        (lambda q, p, t, n: (q, p.double(), 3, t, n), "one dtype"),
        (lambda q, p, t, n: (q, p, 3, t.long(), n), "int32 expected"),
        (lambda q, p, t, n: (q, p, 3, t, n + 99), "lengths from 0 to"),
        (lambda q, p, t, n: (q, p, 3, t + 99, n), "pages from 0 to"),
    ],
)
def test_what_does_not_fit_is_refused(change, says: str) -> None:
    q, pages, width, table, lengths = change(*draw([3, 4], torch.float32))
    with pytest.raises(ValueError, match=f"paged_latent_attention: .*{says}|{says}"):
        paged_latent_attention(q, pages, width, SCALE, table, lengths)
