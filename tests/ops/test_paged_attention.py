"""Paged attention against its formula in float64: ragged lengths, grouped queries, scattered pages."""

import importlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from exactness import assert_within_noise, random

from leyden.ops import native, paged_attention, paged_prompt_attention, softmax_attention

launch = importlib.import_module("leyden.ops.paged_attention.launch")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTHS = [0, 1, 5, 70, 16, 64, 129]


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 keys, or of multiples of that where they would be more than four."""
    for name, value in (("_LEAST", 64), ("_PIECES", 4)):
        monkeypatch.setattr(launch, name, value)


def draw(
    lengths: list[int], dtype: torch.dtype, *, page: int = 5, heads: tuple[int, int] = (6, 2), dim: int = 24
) -> list[torch.Tensor]:
    """Pages dealt out in random order; what no sequence owns is NaN, and unused table entries point nowhere."""
    counts = [math.ceil(length / page) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=torch.Generator().manual_seed(0)).tolist()
    table = torch.full((len(lengths), max(counts, default=0) + 1), -7, dtype=torch.int32)
    pages = [torch.full((len(order), page, heads[1], dim), torch.nan, dtype=dtype) for _ in range(2)]
    for sequence, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = [order.pop() for _ in range(count)]
        table[sequence, :count] = torch.tensor(mine, dtype=torch.int32)
        for seed, x in enumerate(pages):
            for index, at in enumerate(mine):
                left = min(page, length - index * page)
                x[at, :left] = random(left, heads[1], dim, dtype=dtype, seed=1000 * sequence + 2 * index + seed)
    q = random(len(lengths), heads[0], dim, dtype=dtype, seed=77)
    return [q, *pages, table, torch.tensor(lengths, dtype=torch.int32)]


def by_formula(q, key_pages, value_pages, table, lengths):
    """Sequence by sequence in the dtype of the inputs."""
    rows = []
    for b, length in enumerate(lengths.tolist()):
        pages = table[b, : math.ceil(length / key_pages.shape[1])].long()
        group = q.shape[1] // key_pages.shape[2]
        k, v = (x[pages].flatten(0, 1)[:length].repeat_interleave(group, 1) for x in (key_pages, value_pages))
        scores = torch.einsum("hd,shd->hs", q[b], k) / math.sqrt(q.shape[-1])
        rows.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v))
    return torch.stack(rows)


def check(inputs: list[torch.Tensor], backend: str, device: str) -> None:
    mine = paged_attention(*(x.to(device) for x in inputs), backend).cpu()
    exact = paged_attention(*(x.double() if x.is_floating_point() else x for x in inputs), "reference")
    assert mine.dtype == inputs[0].dtype
    assert_within_noise(mine, by_formula(*inputs), exact)
    empty = inputs[4] == 0
    assert torch.equal(mine[empty], torch.zeros_like(mine[empty]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (3, 1)])
def test_ragged_lengths(dtype: torch.dtype, backend: str, heads: tuple[int, int], device: str) -> None:
    check(draw(LENGTHS, dtype, heads=heads), backend, device)


@pytest.mark.parametrize(
    ("page", "dtype"),
    [
        pytest.param(page, dtype, marks=() if index == other else pytest.mark.slow)
        for index, page in enumerate((1, 16, 48))
        for other, dtype in enumerate(DTYPES)
    ],
)
def test_several_pieces(dtype: torch.dtype, page: int, short_pieces: None, device: str) -> None:
    check(draw([0, 1, 31, 33, 63, 64, 65, 128, 256, 257, 300, 700], dtype, page=page), "triton", device)


@pytest.mark.parametrize("lengths", [[511], [512], [513, 0], [1100]])
def test_lengths_around_a_piece(lengths: list[int], device: str) -> None:
    check(draw(lengths, torch.float32, page=64), "triton", device)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dim", [1, 16, 100, 128])
def test_widths(backend: str, dim: int, device: str) -> None:
    check(draw([3, 40], torch.float32, dim=dim, heads=(20, 1)), backend, device)


def test_the_reference_is_the_last_row_of_softmax_attention() -> None:
    q, key_pages, value_pages, table, lengths = draw([13], torch.float64)
    pages = table[0, :3].long()
    k, v = (x[pages].flatten(0, 1)[None, :13] for x in (key_pages, value_pages))
    expected = softmax_attention(q[:, None], k, v, backend="reference")[:, 0]
    for backend in ("reference", "torch"):
        torch.testing.assert_close(paged_attention(q, key_pages, value_pages, table, lengths, backend), expected)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_batches_of_nothing(backend: str, device: str) -> None:
    q, *pages, table, lengths = (x.to(device) for x in draw([0, 0], torch.float32))
    assert torch.equal(paged_attention(q, *pages, table, lengths, backend), torch.zeros_like(q))
    assert torch.equal(paged_attention(q, *pages, table[:, :0], lengths, backend), torch.zeros_like(q))
    assert paged_attention(q[:0], *pages, table[:0], lengths[:0], backend).shape == (0, *q.shape[1:])


def test_views_are_read_as_their_copies(device: str) -> None:
    """Keys and values in one tensor, queries of one projection, a slice of a wide table."""
    q, keys, values, table, lengths = (x.to(device) for x in draw(LENGTHS, torch.float32))
    both = torch.stack([keys, values], dim=1)
    wide = torch.cat([table, table], dim=1)[:, : table.shape[1]]
    viewed = paged_attention(q.mT.contiguous().mT, both[:, 0], both[:, 1], wide, lengths, "triton")
    assert torch.equal(viewed, paged_attention(q, keys, values, table, lengths, "triton"))


def test_a_sequence_has_the_same_bits_in_any_batch(short_pieces: None, device: str) -> None:
    q, *pages, table, lengths = (x.to(device) for x in draw(LENGTHS, torch.float32))
    together = paged_attention(q, *pages, table, lengths, "triton")
    assert torch.equal(together, paged_attention(q, *pages, table, lengths, "triton"))
    for b, length in enumerate(LENGTHS):
        narrow = table[b : b + 1, : math.ceil(length / 5)]
        alone = paged_attention(q[b : b + 1], *pages, narrow, lengths[b : b + 1], "triton")
        assert torch.equal(alone[0], together[b])


def test_scores_far_apart_stay_finite(short_pieces: None, device: str) -> None:
    """A piece whose every score is far below another's weighs nothing."""
    q, keys, values, table, lengths = (x.to(device) for x in draw([100], torch.float32))
    q, keys = torch.full_like(q, 50.0), keys.nan_to_num() * 100
    out = paged_attention(q, keys, values, table, lengths, "triton")
    expected = paged_attention(q.double(), keys.double(), values.double(), table, lengths, "reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_pages_beyond_two_to_the_31st_element() -> None:
    page, num_pages = 64, 300_000  # 2.5e9 elements: 5 GB each
    pages = torch.zeros(num_pages, page, 1, 128, dtype=torch.bfloat16, device="cuda")
    pages[-1] = random(page, 1, 128, dtype=torch.bfloat16).cuda()
    table = torch.tensor([[num_pages - 1]], dtype=torch.int32, device="cuda")
    lengths = torch.tensor([page], dtype=torch.int32, device="cuda")
    q = random(1, 8, 128, dtype=torch.bfloat16).cuda()
    out = paged_attention(q, pages, pages, table, lengths, "triton")
    near = paged_attention(q, pages[-1:], pages[-1:], table * 0, lengths, "triton")
    assert torch.equal(out, near)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: torch.zeros(2, 5, 24)}, "multiple of Hkv"),
        ({0: torch.zeros(2, 6, 20)}, "multiple of Hkv"),
        ({2: torch.zeros(1, 5, 2, 24)}, "multiple of Hkv"),
        ({0: torch.zeros(2, 6, 24, dtype=torch.float64)}, "one dtype"),
        ({3: torch.zeros(3, 1, dtype=torch.int32)}, "block_table"),
        ({4: torch.zeros(3, dtype=torch.int32)}, "lengths"),
        ({4: torch.zeros(2, dtype=torch.int64)}, "int32"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[int, torch.Tensor], message: str) -> None:
    inputs = dict(enumerate(draw([3, 4], torch.float32))) | changes
    with pytest.raises(ValueError, match=message):
        paged_attention(*(inputs[index] for index in range(5)))


def test_nothing_breaks_the_graph(device: str) -> None:
    inputs = [x.to(device) for x in draw([3, 0, 40], torch.float32)]

    def attend(q: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return paged_attention(q * 2, *others, "triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), attend(*inputs))
    torch.library.opcheck(launch._paged_attention, tuple(inputs))


@pytest.mark.gpu
def test_nothing_is_read_back(no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    inputs = [x.cuda() for x in draw(LENGTHS, torch.bfloat16)]
    paged_attention(*inputs)
    with no_reading_back():
        paged_attention(*inputs)


def draw_prompt(length: int, dtype: torch.dtype, *, page: int, heads: tuple[int, int], dim: int) -> list[torch.Tensor]:
    """A query for each token, its pages in random order (NaN behind the last token), and a table longer than it."""
    _, keys, values, table, _ = draw([length], dtype, page=page, heads=heads, dim=dim)
    return [random(length, heads[0], dim, dtype=dtype, seed=5), keys, values, table[0]]


def of_prompt(inputs: list[torch.Tensor], first: int, backend: str, *, exactly: bool = False) -> torch.Tensor:
    q, keys, values, table = (x.double() if exactly and x.is_floating_point() else x for x in inputs)
    return paged_prompt_attention(q[first:], keys, values, table, len(q), backend)


COMPILED = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")
NATIVE = pytest.param("native", marks=COMPILED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", ["torch", NATIVE])
@pytest.mark.parametrize(
    ("length", "first", "page", "heads", "dim"),
    [
        (1, 0, 4, (1, 1), 16),
        (37, 0, 5, (6, 2), 48),
        (37, 30, 5, (3, 1), 16),
        (300, 0, 256, (4, 2), 64),
        (1030, 893, 256, (2, 2), 32),
        (600, 590, 512, (200, 1), 16),  # pages longer than a block of keys, more heads than a block of queries
    ],
)
def test_the_last_tokens_of_a_prompt(
    dtype: torch.dtype, backend: str, length: int, first: int, page: int, heads: tuple[int, int], dim: int
) -> None:
    inputs = draw_prompt(length, dtype, page=page, heads=heads, dim=dim)
    exact = of_prompt(inputs, first, "reference", exactly=True)
    plain = of_prompt(inputs, first, "reference" if dtype == torch.float32 else "torch")
    assert_within_noise(of_prompt(inputs, first, backend), plain, exact)


@COMPILED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_of_a_prompt_has_its_bits_in_any_company(dtype: torch.dtype) -> None:
    """Native: whichever tokens are asked for, and however much of the prompt is there already."""
    inputs = draw_prompt(531, dtype, page=256, heads=(6, 2), dim=32)
    whole = of_prompt(inputs, 0, "native")
    for first in (1, 95, 256, 530):
        assert torch.equal(of_prompt(inputs, first, "native"), whole[first:])
    for length in (1, 17, 255, 256, 257, 400):
        assert torch.equal(of_prompt([inputs[0][:length], *inputs[1:]], 0, "native"), whole[:length])


def test_what_is_no_prompt() -> None:
    q, keys, values, table = draw_prompt(10, torch.float32, page=4, heads=(2, 1), dim=16)
    for pages, length, said in [
        (table[:3], 9, "from 10"),
        (table[:3], 13, r"N \* 4"),
        (table[:3].long(), 10, "int64"),
        (torch.tensor([0, 99, 0], dtype=torch.int32), 10, "given 99"),
    ]:
        with pytest.raises(ValueError, match=said):
            paged_prompt_attention(q, keys, values, pages, length)
    with pytest.raises(ValueError, match="one dtype"):
        paged_prompt_attention(q.bfloat16(), keys, values, table, 10)
    assert paged_prompt_attention(q[:0], keys, values, table, 0).shape == (0, 2, 16)
