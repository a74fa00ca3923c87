"""Softmax attention on a GPU: which of PyTorch's kernels takes a call, and what it gives.

Without a GPU the choice is held, and what the kernel for packed documents is handed: a stand-in with its parameters,
written by its documentation, takes its place.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.attention.varlen as varlen
from exactness import assert_within_noise, random, with_gradients

from leyden.ops import softmax_attention
from leyden.ops.softmax_attention import gpu, portable

HALF = (torch.bfloat16, torch.float16)


def draw(T: int, S: int, dtype: torch.dtype, *, batch: int = 1, dim: int = 16) -> list[torch.Tensor]:
    sizes = ((T, 4), (S, 2), (S, 2))
    return [random(batch, n, heads, dim, dtype=dtype, seed=seed) for seed, (n, heads) in enumerate(sizes)]


def by_documents(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """What ``varlen_attn`` is documented to compute."""
    assert query.ndim == 3
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert window_size[1] == 0
    pieces = []
    rows, keys = itertools.pairwise(cu_seq_q.tolist()), itertools.pairwise(cu_seq_k.tolist())
    for (a, b), (c, d) in zip(rows, keys, strict=True):
        assert b - a <= max_q
        assert d - c <= max_k
        window = None if window_size[0] < 0 else window_size[0] + 1
        q, k, v = query[None, a:b], key[None, c:d], value[None, c:d]
        pieces.append(softmax_attention(q, k, v, backend="reference", window=window)[0])
    return torch.cat(pieces)


def of_an_early_version(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
    """It groups heads without being told."""
    return by_documents(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window_size, enable_gqa=True)


def without_windows(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    raise AssertionError("cannot do what is asked")


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine that has everything."""
    monkeypatch.setattr(varlen, "varlen_attn", by_documents)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    yield monkeypatch


@pytest.mark.parametrize(
    ("T", "S", "packed", "window", "expected"),
    [
        (9, 9, False, None, "rows"),
        (9, 9, False, 9, "rows"),
        (1, 9, False, 3, "rows"),
        (9, 9, False, 8, "varlen"),
        (9, 9, True, None, "varlen"),
        (5, 9, False, None, "varlen"),
        (0, 9, False, None, "portable"),
    ],
)
def test_the_choice_by_shape(ampere: object, T: int, S: int, packed: bool, window: int | None, expected: str) -> None:
    q, k, _ = draw(T, S, torch.bfloat16)
    assert gpu.kernel(q, k, torch.tensor([0, T]) if packed else None, window) == expected


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [4, 64, 192, 256])
def test_the_choice_by_dtype_and_width(ampere: object, dtype: torch.dtype, dim: int) -> None:
    q, k, _ = draw(9, 9, dtype, dim=dim)
    expected = "varlen" if dtype in HALF and dim in (64, 192) else "portable"
    assert gpu.kernel(q, k, torch.tensor([0, 9]), None) == expected


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (varlen, "varlen_attn", without_windows),
        (torch.backends.cuda, "is_flash_attention_available", lambda: False),
        (torch.cuda, "get_device_capability", lambda device=None: (7, 5)),
        (torch.version, "hip", "7.0"),
    ],
)
def test_the_choice_by_capability(ampere: pytest.MonkeyPatch, where: object, name: str, value: object) -> None:
    ampere.setattr(where, name, value)
    q, k, _ = draw(9, 9, torch.bfloat16)
    assert gpu.kernel(q, k, torch.tensor([0, 9]), None) == "portable"


def test_a_pytorch_without_the_kernel(ampere: pytest.MonkeyPatch) -> None:
    ampere.delattr(varlen, "varlen_attn")
    q, k, _ = draw(9, 9, torch.bfloat16)
    assert gpu.kernel(q, k, torch.tensor([0, 9]), None) == "portable"


@pytest.mark.parametrize("version", [by_documents, of_an_early_version])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_what_the_kernel_is_handed(ampere: pytest.MonkeyPatch, version: object, window: int | None) -> None:
    """Packed documents, and rows of a batch behind a cache whose last dim is strided."""
    ampere.setattr(varlen, "varlen_attn", version)
    cu_seqlens = torch.tensor([0, 0, 1, 9, 30])
    q, k, v = draw(30, 30, torch.bfloat16)
    expected = softmax_attention(q, k, v, cu_seqlens, "reference", window=window)
    assert torch.equal(gpu.softmax_attention_gpu(q, k, v, cu_seqlens, window), expected)
    q, k, v = draw(5, 12, torch.bfloat16, batch=3)
    expected = softmax_attention(q, k, v, backend="reference", window=window)
    strided = k.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(gpu.softmax_attention_gpu(q, strided, v, None, window), expected)


def test_the_choice_breaks_no_graph(ampere: pytest.MonkeyPatch) -> None:
    """The kernel itself is one of PyTorch's registered operations; here it only gives the right shape."""
    ampere.setattr(varlen, "varlen_attn", lambda q, *_, window_size, enable_gqa: q * 2)
    q, k, v = draw(9, 9, torch.bfloat16)
    cu_seqlens = torch.tensor([0, 4, 9])
    compiled = torch.compile(gpu.softmax_attention_gpu, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, cu_seqlens, None), q * 2)


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize(("T", "S"), [(1, 9), (9, 9), (4, 9)])
def test_documents_of_the_loop_for_every_other_gpu(
    monkeypatch: pytest.MonkeyPatch, window: int | None, T: int, S: int
) -> None:
    """On the CPU, which has a way of its own for whole calls; three queries at once."""
    monkeypatch.setattr(portable, "_QUERY_BLOCK", 3)

    def document(q, k, v):
        return [portable._one_document(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), window).transpose(1, 2)]

    inputs = draw(T, S, torch.float64)
    exact = with_gradients(lambda *x: [softmax_attention(*x, backend="reference", window=window)], inputs)
    for a, e in zip(with_gradients(document, inputs), exact, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window", [None, 2, 40])
@pytest.mark.parametrize(
    ("T", "S", "bounds"), [(1, 300, None), (300, 300, None), (70, 300, None), (300, 300, [0, 0, 1, 130, 300])]
)
def test_on_the_gpu(dtype: torch.dtype, window: int | None, T: int, S: int, bounds: list[int] | None) -> None:
    """Output and gradients under the precision rule, and the same bits again."""
    inputs = draw(T, S, dtype, batch=1 if bounds else 2, dim=64)
    cu_seqlens = None if bounds is None else torch.tensor(bounds)

    def on(device: str, backend: str):
        cu = None if cu_seqlens is None else cu_seqlens.to(device)
        return lambda *x: [softmax_attention(*x, cu, backend, window=window)]

    once, again = (with_gradients(on("cuda", "auto"), [x.cuda() for x in inputs]) for _ in range(2))
    plain = with_gradients(on("cpu", "torch"), inputs)
    exact = with_gradients(on("cpu", "reference"), [x.double() for x in inputs])
    for name, a, b, p, e in zip(("output", "dq", "dk", "dv"), once, again, plain, exact, strict=True):
        assert torch.equal(a, b), name
        assert_within_noise(a.cpu(), p, e, what=name)


@pytest.mark.gpu
def test_nothing_is_read_back(no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    """From packed documents, whose graph is whole."""
    q, k, v = (x.cuda() for x in draw(300, 300, torch.bfloat16, dim=64))
    cu_seqlens = torch.tensor([0, 100, 300], device="cuda")
    softmax_attention(q, k, v, cu_seqlens)
    with no_reading_back():
        eager = softmax_attention(q, k, v, cu_seqlens, window=50)
    compiled = torch.compile(
        lambda *x: softmax_attention(*x, cu_seqlens, "torch", window=50), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, k, v), eager)
