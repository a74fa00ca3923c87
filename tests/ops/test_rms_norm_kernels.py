"""The Triton kernels of the norms: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

from collections.abc import Callable

import pytest
import torch
from exactness import HARDWARE, Op, assert_all_within_noise, assert_within_noise, random, with_gradients

from leyden.ops import backend, gated_rms_norm, residual_rms_norm, rms_norm
from leyden.ops.backend import choose

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ALPHA, BETA = 3.5, 0.8
EPS = 1e-5

Norm = Callable[[str], Op]


def plain(backend: str) -> Op:
    return lambda x, weight: [rms_norm(x, weight, EPS, backend)]


def gated(backend: str) -> Op:
    return lambda x, gate, weight: [gated_rms_norm(x, gate, weight, EPS, backend)]


def residual(backend: str) -> Op:
    return lambda kept, added, weight: [residual_rms_norm(kept, added, weight, ALPHA, BETA, EPS, backend)]


NORMS = pytest.mark.parametrize("norm", [plain, gated, residual])


def draw(norm: Norm, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """The inputs [..., D] and the weight, which is float32."""
    rows = [random(*shape, dtype=dtype, seed=seed) for seed in range(1 if norm is plain else 2)]
    return [x.to(device) for x in (*rows, 1 + random(shape[-1], dtype=torch.float32, seed=9) / 4)]


@NORMS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (1, 1), (2, 3, 33), (130, 96), (3, 2500)])
def test_output_and_gradients(norm: Norm, dtype: torch.dtype, shape: tuple[int, ...], device: str) -> None:
    inputs = draw(norm, shape, dtype)
    mine = with_gradients(norm("triton"), [x.to(device) for x in inputs])
    same_precision = with_gradients(norm("torch"), inputs)
    exact = with_gradients(norm("reference"), [x.double() for x in inputs])
    for number, (a, p, e) in enumerate(zip(mine, same_precision, exact, strict=True)):
        assert_within_noise(a.cpu(), p, e, what=f"result {number}", hardware=HARDWARE if shape[-1] == 1 else 0.0)
    assert (mine[0].dtype, mine[-1].dtype) == (dtype, torch.float32)


@NORMS
def test_more_rows_than_programs(norm: Norm, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Each program of the backward takes several tiles, and the last ones fewer."""
    from leyden.ops.rms_norm import launch

    monkeypatch.setattr(launch, "_TILE", 64)
    monkeypatch.setattr(launch, "_FEWEST_PROGRAMS", 3)
    monkeypatch.setattr(launch, "_PARTIAL_SUMS", 0)
    inputs = draw(norm, (45, 30), torch.float32)
    mine = with_gradients(norm("triton"), [x.to(device) for x in inputs])
    expected = with_gradients(norm("reference"), inputs)
    for a, e in zip(mine, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-5, atol=1e-5)


@NORMS
def test_no_rows(norm: Norm, device: str) -> None:
    out, *gradients = with_gradients(norm("triton"), draw(norm, (0, 4), torch.float32, device))
    assert out.shape == gradients[0].shape == (0, 4)
    assert torch.equal(gradients[-1], torch.zeros(4, device=device))


@NORMS
def test_views_equal_copies(norm: Norm, device: str) -> None:
    """Rows that lie apart, and rows whose elements do; the gradient that arrives is strided as well."""
    *rows, weight = draw(norm, (2, 9, 24), torch.float32, device)
    for view in (lambda x: x[..., 5:17], lambda x: x[..., ::2], lambda x: x[:, 2:7, :12], lambda x: x[:1, :1, :12]):
        results = []
        for copied in (False, True):
            leaves = [x.detach().clone().requires_grad_() for x in rows]
            parts = [view(x).contiguous() if copied else view(x) for x in leaves]
            out = norm("triton")(*parts, weight[:12])[0]
            turned = out.transpose(0, -1)
            gradients = torch.autograd.grad(turned, leaves, random(*turned.shape, dtype=torch.float32).to(device))
            results.append([out, *gradients])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@NORMS
def test_rows_of_zeros_have_finite_gradients(norm: Norm, device: str) -> None:
    *rows, weight = draw(norm, (3, 5), torch.bfloat16, device)
    for result in with_gradients(norm("triton"), [*(torch.zeros_like(x) for x in rows), weight]):
        assert result.isfinite().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in the interpreter: 1 / (1 + inf) = 0
def test_gates_wide_open_and_shut(device: str) -> None:
    x, gate, weight = draw(gated, (2, 4), torch.float32, device)
    gate[0], gate[1] = 200.0, -200.0
    out, dx, dgate, _ = with_gradients(gated("triton"), [x, gate, weight])
    torch.testing.assert_close(out[0], rms_norm(x, weight, EPS, "torch")[0])
    assert not out[1].any()
    assert not dx[1].any()
    assert not dgate.any()


@NORMS
def test_the_same_bits_again(norm: Norm, device: str) -> None:
    inputs = draw(norm, (70, 96), torch.float32, device)
    once, again = (with_gradients(norm("triton"), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@NORMS
def test_nothing_breaks_the_graph(norm: Norm, device: str) -> None:
    inputs = draw(norm, (4, 3, 12), torch.float32, device)
    compiled = torch.compile(norm("triton"), fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, inputs), with_gradients(norm("triton"), inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_choosing_a_body_does_not_break_the_graph_either(place: str) -> None:
    def choice(x: torch.Tensor) -> torch.Tensor:
        chosen = choose("rms_norm", "auto", x, triton=x.dtype)  # on the CPU
        return x + 1 if backend._automatic("rms_norm", place, x.dtype, None) == "triton" and chosen == "torch" else x

    compiled = torch.compile(choice, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())).item() == (place == "cuda")


def test_the_registered_op(device: str) -> None:
    from leyden.ops.rms_norm import launch

    x, other, weight = draw(gated, (5, 12), torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, other, weight)]
    for added, gate in ((None, None), (leaves[1], None), (None, leaves[1])):
        torch.library.opcheck(launch._forward, (leaves[0], added, gate, leaves[2], EPS, ALPHA, BETA))


def test_another_count_of_rows_compiles_nothing_new(device: str) -> None:
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    from leyden.ops.rms_norm import kernels

    counts = []
    for num_rows in (1001, 1003, 1999):
        inputs = draw(gated, (num_rows, 64), torch.float32, device)
        with_gradients(gated("triton"), inputs)
        counts.append(
            sum(len(cache[0]) for kernel in (kernels.normalise, kernels.differentiate)
                for cache in kernel.device_caches.values())
        )  # fmt: skip
    assert counts[0] == counts[-1]


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    x = torch.zeros(300_000, 8192, dtype=torch.bfloat16, device="cuda")
    x[-3:] = random(3, 8192, dtype=torch.bfloat16).cuda()
    weight = torch.ones(8192, device="cuda")
    tail = x[-3:].clone()
    torch.testing.assert_close(rms_norm(x, weight, EPS, "triton")[-3:], rms_norm(tail, weight, EPS, "triton"))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("beta", [1.0, BETA])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_residual_of_existing_ops(dtype: torch.dtype, beta: float, backend: str) -> None:
    """On the CPU the sum is a tensor of its own, and rounded as one."""

    def summed(kept: torch.Tensor, added: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        return [rms_norm(kept * ALPHA + added * beta, weight, EPS, "reference")]

    def of(backend: str) -> Op:
        return lambda kept, added, weight: [residual_rms_norm(kept, added, weight, ALPHA, beta, EPS, backend)]

    assert_all_within_noise(of(backend), summed, of("reference"), draw(residual, (7, 33), dtype))


def test_a_residual_that_does_not_fit_is_refused() -> None:
    kept, weight = torch.zeros(2, 4), torch.ones(4)
    with pytest.raises(ValueError, match=r"residual_rms_norm: kept and added .* added \(2, 3\)"):
        residual_rms_norm(kept, torch.zeros(2, 3), weight, 1.0, 1.0, EPS)
    with pytest.raises(ValueError, match="one dtype"):
        residual_rms_norm(kept, kept.double(), weight, 1.0, 1.0, EPS)
