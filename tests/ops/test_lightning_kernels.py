"""The Triton kernels of lightning attention: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import importlib
import itertools

import pytest
import torch
from exactness import assert_within_noise, random, with_gradients

from leyden.ops import lightning_attention

launch = importlib.import_module("leyden.ops.lightning_attention.launch")

SLOPES = torch.tensor([0.0, 0.004, 0.9, 300.0])
H, K, V = 4, 6, 20
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check(bounds: list[int], dtype: torch.dtype, device: str, *, batch: int = 1, resumed: bool = True) -> None:
    """Output, final state and all gradients under the precision rule, head by head."""
    T, rows = bounds[-1], batch if len(bounds) == 2 else len(bounds) - 1
    cu_seqlens = None if len(bounds) == 2 else torch.tensor(bounds, dtype=torch.int32)
    sizes = [(batch, T, H, K), (batch, T, H, K), (batch, T, H, V), (rows, H, K, V)][: 4 if resumed else 3]
    inputs = [
        random(*size, dtype=dtype if index < 3 else torch.float32, seed=index) for index, size in enumerate(sizes)
    ]

    def body(backend: str, where: str):
        cu = None if cu_seqlens is None else cu_seqlens.to(where)

        def op(*x: torch.Tensor):
            return lightning_attention(*x[:3], SLOPES.to(where), x[3] if resumed else None, cu, backend)

        return op

    mine = [x.cpu() for x in with_gradients(body("triton", device), [x.to(device) for x in inputs])]
    plain = with_gradients(body("torch", "cpu"), inputs)
    exact = with_gradients(body("reference", "cpu"), [x.double() for x in inputs])
    for name, a, p, e in zip(("output", "final state", "dq", "dk", "dv", "dstate"), mine, plain, exact, strict=False):
        assert_within_noise(a, p, e, dim=1 if "state" in name else 2, what=name)
    assert (mine[0].dtype, mine[1].dtype) == (dtype, torch.float32)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are cut at every 64 tokens."""
    monkeypatch.setattr(launch, "_SHORTEST_SEGMENT", 64)
    monkeypatch.setattr(launch, "_PROGRAMS", 1 << 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "batch"), [(1, 1), (67, 2)])
def test_rows_equal_the_recurrence(dtype: torch.dtype, num_tokens: int, batch: int, device: str) -> None:
    check([0, num_tokens], dtype, device, batch=batch)


@pytest.mark.parametrize("num_tokens", [31, 32, 33, 63, 64, 65])
def test_lengths_around_a_tile(num_tokens: int, device: str) -> None:
    check([0, num_tokens], torch.float32, device, resumed=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_documents_equal_the_recurrence(dtype: torch.dtype, device: str) -> None:
    check([0, 0, 1, 2, 40, 72, 72], dtype, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("resumed", [False, True])
def test_documents_cut_into_segments(dtype: torch.dtype, resumed: bool, short_segments: None, device: str) -> None:
    """Empty, of one token, one segment, one and a token, three."""
    check([0, 0, 1, 65, 130, 300, 300], dtype, device, resumed=resumed)


@pytest.mark.parametrize("sizes", [(16, 16), (33, 16), (5, 130)])
def test_widths(sizes: tuple[int, int], device: str) -> None:
    q, k = (random(1, 40, 1, sizes[0], dtype=torch.float32, seed=seed) for seed in (1, 2))
    v = random(1, 40, 1, sizes[1], dtype=torch.float32, seed=3)
    slopes = torch.tensor([0.1])
    mine = with_gradients(
        lambda *x: lightning_attention(*x, slopes.to(device), backend="triton"), [x.to(device) for x in (q, k, v)]
    )
    exact = with_gradients(lambda *x: lightning_attention(*x, slopes, backend="reference"), [q, k, v])
    for a, e in zip(mine, exact, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=2e-5, atol=2e-5)


def test_views_of_one_projection(device: str) -> None:
    qkv = random(2, 40, H, 3 * K, dtype=torch.float32).to(device)
    slopes = SLOPES.to(device)

    def of(views: bool):
        def op(x: torch.Tensor):
            parts = x.split(K, dim=-1)
            return lightning_attention(*(parts if views else [p.contiguous() for p in parts]), slopes, backend="triton")

        return op

    for a, b in zip(with_gradients(of(True), [qkv]), with_gradients(of(False), [qkv]), strict=True):
        assert torch.equal(a, b)


def test_a_final_state_is_not_poisoned_by_the_tail(device: str) -> None:
    """The known defect: rows beyond the last token read as 0 times infinity."""
    memory = torch.full((1, 64, H, V), torch.nan, device=device)
    memory[:, :40] = random(1, 40, H, V, dtype=torch.float32).to(device)
    k = torch.full((1, 64, H, V), torch.inf, device=device)
    k[:, :40] = 1.0
    out, state = lightning_attention(k[:, :40], k[:, :40], memory[:, :40], SLOPES.to(device), backend="triton")
    assert out.isfinite().all()
    assert state.isfinite().all()


def test_steep_slopes_stay_finite(device: str) -> None:
    slopes = torch.tensor([0.0, 1e2, 1e10, torch.finfo(torch.float32).max / 1e4], device=device)
    x = random(1, 70, H, 16, dtype=torch.float32).to(device)
    for result in with_gradients(lambda x: lightning_attention(x, x, x, slopes, backend="triton"), [x]):
        assert result.isfinite().all()


def test_another_length_compiles_nothing_new(device: str) -> None:
    """A length that is a compile-time constant means a new kernel for every prompt."""
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    kernels = importlib.import_module("leyden.ops.lightning_attention.kernels")

    def compiled() -> int:
        return sum(len(cache[0]) for cache in kernels.attend.device_caches.values())

    counts = []
    for num_tokens in (1000, 1001, 1017, 1999):
        x = torch.randn(1, num_tokens, H, 64, device=device)
        lightning_attention(x, x, x, SLOPES.to(device), backend="triton")
        counts.append(compiled())
    assert counts[1] == counts[-1]


def test_the_same_bits_again(short_segments: None, device: str) -> None:
    bounds = [0, 30, 200]
    q, k, v = (random(1, 200, H, K, dtype=torch.float32, seed=seed).to(device) for seed in range(3))
    cu = torch.tensor(bounds, device=device)
    once, again = (
        with_gradients(lambda *x: lightning_attention(*x, SLOPES.to(device), None, cu, "triton"), [q, k, v])
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(once, again))
