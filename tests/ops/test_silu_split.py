"""SiLU and split: every body against the formula; the Triton one in its interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from exactness import DTYPES, HARDWARE, Op, assert_within_noise, random, with_gradients
from torch.nn.functional import silu

from leyden.ops import silu_split
from leyden.ops.native import DTYPES as NATIVE_DTYPES

SHAPES = [(1, 1, 1, 3), (2, 7, 3, 15), (3, 41, 5, 48), (1, 2, 2, 3 * 2100)]


def body(backend: str) -> Op:
    return lambda qkv: silu_split(qkv, backend)


def check(backend: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    qkv = 3 * random(*shape, dtype=dtype)
    mine = with_gradients(body(backend), [qkv.to(device)])
    plain = with_gradients(lambda x: silu(x).split(shape[-1] // 3, dim=-1), [qkv])
    exact = with_gradients(body("reference"), [qkv.double()])
    for name, a, p, e in zip(("q", "k", "v", "gradient"), mine, plain, exact, strict=True):
        assert_within_noise(a.cpu(), p, e, what=name, hardware=HARDWARE if backend == "triton" else 0.0)
        assert a.dtype == dtype


def test_the_reference_by_hand() -> None:
    qkv = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5, -0.5], dtype=torch.float64).view(1, 1, 1, 6)
    expected = (qkv / (1 + torch.exp(-qkv))).split(2, dim=-1)
    for a, e in zip(silu_split(qkv, "reference"), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_natively(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check("native", shape, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check("torch", shape, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_triton(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    check("triton", shape, dtype, device)


@pytest.mark.parametrize("backend", ["torch", "native", "triton"])
@pytest.mark.parametrize("shape", [(2, 0, 3, 6), (0, 5, 3, 6), (2, 5, 3, 0)])
def test_nothing_to_split(backend: str, shape: tuple[int, ...], device: str) -> None:
    *parts, gradient = with_gradients(body(backend), [torch.zeros(shape, device=device)])
    assert all(part.shape == (*shape[:3], shape[3] // 3) for part in parts)
    assert gradient.shape == shape


@pytest.mark.parametrize("backend", ["torch", "native", "triton"])
def test_views_equal_copies(backend: str, device: str) -> None:
    """Rows that lie apart, a cut of a batch, heads before tokens, elements that lie apart."""
    x = random(2, 9, 9, 24, dtype=torch.float32).to(device)
    for view in (
        lambda x: x[..., 5:17],
        lambda x: x[:, 2:5, :, :12],
        lambda x: x.transpose(1, 2),
        lambda x: x[..., ::2],
    ):
        views = with_gradients(lambda x, view=view: silu_split(view(x), backend), [x])
        copies = with_gradients(lambda x, view=view: silu_split(view(x).contiguous(), backend), [x])
        for a, b in zip(views, copies, strict=True):  # PyTorch's own silu rounds otherwise where elements lie apart
            torch.testing.assert_close(a, b, rtol=0 if backend == "triton" else 1e-5, atol=0)


@pytest.mark.parametrize("mute", [(0,), (1, 2)])
def test_parts_without_a_gradient(mute: tuple[int, ...], device: str) -> None:
    x = random(2, 3, 2, 12, dtype=torch.float32)
    mine = with_gradients(body("triton"), [x.to(device)], mute=mute)
    for a, e in zip(mine, with_gradients(body("reference"), [x], mute=mute), strict=True):
        torch.testing.assert_close(a.cpu(), e)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in the interpreter: 1 / (1 + inf) = 0
def test_far_from_zero(device: str) -> None:
    x = torch.tensor([200.0, -200.0, 0.0], device=device).view(1, 1, 1, 3)
    q, k, v, gradient = with_gradients(body("triton"), [x])
    assert (q.item(), k.item(), v.item()) == (200.0, 0.0, 0.0)
    assert gradient.isfinite().all()


def test_the_same_bits_again(device: str) -> None:
    x = random(2, 9, 3, 12, dtype=torch.bfloat16).to(device)
    once, again = (with_gradients(body("triton"), [x]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_nothing_breaks_the_graph(device: str) -> None:
    x = random(2, 9, 3, 12, dtype=torch.float32).to(device)
    compiled = torch.compile(body("triton"), fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, [x]), with_gradients(body("triton"), [x]), strict=True):
        assert torch.equal(a, b)


def test_the_registered_op(device: str) -> None:
    from leyden.ops.silu_split import launch

    x = random(10, 12, dtype=torch.float32).to(device).requires_grad_()
    torch.library.opcheck(launch._forward, (x,))


def test_another_length_compiles_nothing_new(device: str) -> None:
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    from leyden.ops.silu_split import kernels

    counts = []
    for num_tokens in (1001, 1003, 1999):
        with_gradients(body("triton"), [torch.zeros(1, num_tokens, 3, 12, device=device)])
        counts.append(
            sum(len(cache[0]) for kernel in (kernels.split, kernels.join) for cache in kernel.device_caches.values())
        )
    assert counts[0] == counts[-1]


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    qkv = torch.zeros(1, 100_000, 64, 384, dtype=torch.bfloat16, device="cuda")
    qkv[:, -3:] = random(1, 3, 64, 384, dtype=torch.bfloat16).cuda()
    for a, e in zip(silu_split(qkv, "triton"), silu_split(qkv[:, -3:].clone(), "triton"), strict=True):
        assert torch.equal(a[:, -3:], e)


def test_a_shape_without_thirds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"silu_split: qkv \[B, T, H, 3K\] expected; given \(1, 2, 3, 4\)"):
        silu_split(torch.zeros(1, 2, 3, 4))
