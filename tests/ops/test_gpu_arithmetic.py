"""The interpreter under :mod:`gpu_arithmetic` computes what tensor cores and approximate instructions do."""

import pytest

triton = pytest.importorskip("triton")

import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from exactness import HARDWARE, random  # noqa: E402


@triton.jit
def _multiply(a, b, out, N: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@triton.jit
def _cast(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def _exp(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.exp(tl.load(x + at)))


@triton.jit
def _log(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.log(tl.load(x + at)))


@triton.jit
def _rsqrt(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.rsqrt(tl.load(x + at)))


def _product(a: torch.Tensor, b: torch.Tensor, precision: str, device: str) -> torch.Tensor:
    out = torch.empty(16, 16, device=device)
    _multiply[(1,)](a.to(device), b.to(device), out, N=16, PRECISION=precision)
    return out.cpu()


def test_tf32_drops_what_its_mantissa_has_no_room_for(device: str) -> None:
    """1 + 2^-11 is read as 1; three products find it again; float32 has it."""
    a = torch.full((16, 16), 1 + 2.0**-11)
    one = torch.eye(16)
    assert torch.equal(_product(a, one, "tf32", device), torch.ones(16, 16))
    assert torch.equal(_product(a, one, "tf32x3", device), a)
    assert torch.equal(_product(a, one, "ieee", device), a)


def test_three_products_of_tf32_are_nearly_float32(device: str) -> None:
    a, b = (random(16, 16, dtype=torch.float32, seed=seed) for seed in (1, 2))
    exact = a.double() @ b.double()
    once, thrice = ((_product(a, b, precision, device) - exact).abs().max() for precision in ("tf32", "tf32x3"))
    assert once > 5e-4
    assert thrice < 1e-5


def test_products_of_bfloat16_are_exact(device: str) -> None:
    a, b = (random(16, 16, dtype=torch.bfloat16, seed=seed) for seed in (1, 2))
    torch.testing.assert_close(_product(a, b, "ieee", device), a.float() @ b.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("source", [torch.float32, torch.int8, torch.int32])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float32])
def test_casts_round_to_nearest_even(source: torch.dtype, to: torch.dtype, device: str) -> None:
    x = (random(1024, dtype=torch.float32) * 50).to(source)
    if source == torch.float32:
        x[:4] = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8) - 1e-6, torch.inf])  # two ties for bfloat16
    out = torch.empty(1024, dtype=to, device=device)
    _cast[(1,)](x.to(device), out, N=1024)
    assert torch.equal(out.cpu(), x.to(to))


@pytest.mark.parametrize(("kernel", "exact"), [(_exp, torch.exp), (_log, torch.log), (_rsqrt, torch.rsqrt)])
def test_functions_are_off_by_what_the_manual_allows(kernel, exact, device: str) -> None:
    x = random(1024, dtype=torch.float32).abs() + 1e-3
    found = []
    for _ in range(2):
        out = torch.empty(1024, device=device)
        kernel[(1,)](x.to(device), out, N=1024)
        found.append(out.cpu())
    error = ((found[0].double() - exact(x.double())) / exact(x.double())).abs()
    assert error.max() < 4 * HARDWARE  # the argument of an exponential is rounded too
    assert torch.equal(*found)
