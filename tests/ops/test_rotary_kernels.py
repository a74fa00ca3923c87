"""The Triton kernel of the rotary turn: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import pytest
import torch
from exactness import assert_within_noise, random, with_gradients

from leyden.ops import apply_rotary, rotary_angles, rotary_frequencies

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def angles(num_tokens: int, rotary_dim: int, device: str, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.arange(start, start + num_tokens, device=device)
    return rotary_angles(positions, rotary_frequencies(rotary_dim, 1e4, positions.device))


def turn(
    backend: str, num_tokens: int, rotary_dim: int, device: str = "cpu", start: int = 1_000_000, scale: float = 1.0
):
    cos, sin = angles(num_tokens, rotary_dim, device, start)
    return lambda x: [apply_rotary(x, cos, sin, backend, scale=scale)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "rotary_dim"),
    [((2, 7, 3, 12), 0), ((2, 7, 3, 12), 6), ((2, 7, 3, 12), 12), ((1, 1, 1, 2), 2), ((3, 41, 5, 20), 8)],
)
@pytest.mark.parametrize("scale", [1.0, 1.1386])
def test_output_and_gradient(
    dtype: torch.dtype, shape: tuple[int, ...], rotary_dim: int, scale: float, device: str
) -> None:
    x, num_tokens = random(*shape, dtype=dtype), shape[1]
    mine = with_gradients(turn("triton", num_tokens, rotary_dim, device, scale=scale), [x.to(device)])
    plain = with_gradients(turn("torch", num_tokens, rotary_dim, scale=scale), [x])
    exact = with_gradients(turn("reference", num_tokens, rotary_dim, scale=scale), [x.double()])
    for name, a, p, e in zip(("output", "gradient"), mine, plain, exact, strict=True):
        assert_within_noise(a.cpu(), p, e, what=name)
        assert a.dtype == dtype
    if scale == 1:
        assert torch.equal(mine[0][..., rotary_dim:].cpu(), x[..., rotary_dim:])


def test_the_gradient_is_the_turn_back(device: str) -> None:
    x = random(2, 9, 3, 12, dtype=torch.float32).to(device).requires_grad_()
    (out,) = turn("triton", 9, 8, device)(x)
    (back,) = torch.autograd.grad(out, x, out.detach())
    torch.testing.assert_close(back, x.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 0, 3, 12), (0, 5, 3, 12), (2, 5, 0, 12)])
def test_nothing_to_turn(shape: tuple[int, ...], device: str) -> None:
    x = torch.zeros(shape, device=device)
    out, gradient = with_gradients(turn("triton", shape[1], 6, device), [x])
    assert out.shape == gradient.shape == shape


def test_views_equal_copies(device: str) -> None:
    """Of a joint projection, with heads before tokens, and strided in the last dim; of one token, expanded."""
    x = random(2, 9, 9, 24, dtype=torch.float32).to(device)
    for view in (
        lambda x: x[:, :, 2:5, 5:17],
        lambda x: x.transpose(1, 2)[..., :12],
        lambda x: x[..., ::2],
        lambda x: x[:1, :, :1, :12].expand(2, 9, 3, 12),
    ):
        views = with_gradients(lambda x, view=view: turn("triton", 9, 6, device)(view(x)), [x])
        copies = with_gradients(lambda x, view=view: turn("triton", 9, 6, device)(view(x).contiguous()), [x])
        assert all(torch.equal(a, b) for a, b in zip(views, copies, strict=True))


def test_views_of_the_angles(device: str) -> None:
    """The last positions, as a prefill asks for."""
    x = random(1, 3, 2, 8, dtype=torch.float32).to(device)
    cos, sin = angles(20, 16, device)
    out = apply_rotary(x, cos[-3:, :4], sin[-3:, :4], "triton")
    torch.testing.assert_close(out, apply_rotary(x, cos[-3:, :4], sin[-3:, :4], "torch"))


def test_the_same_bits_again(device: str) -> None:
    x = random(2, 9, 3, 12, dtype=torch.bfloat16).to(device)
    once, again = (with_gradients(turn("triton", 9, 8, device), [x]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_nothing_breaks_the_graph(device: str) -> None:
    x = random(2, 9, 3, 12, dtype=torch.float32).to(device)
    op = turn("triton", 9, 8, device)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(with_gradients(compiled, [x]), with_gradients(op, [x]), strict=True))


def test_the_registered_op(device: str) -> None:
    from leyden.ops.rotary import launch

    x = random(2, 5, 3, 12, dtype=torch.float32).to(device).requires_grad_()
    cos, sin = angles(5, 6, device)
    for inverse in (False, True):
        torch.library.opcheck(launch._turn, (x, cos, sin, 1.25, inverse))


def test_another_length_compiles_nothing_new(device: str) -> None:
    if device == "cpu":
        pytest.skip("the interpreter compiles nothing")
    from leyden.ops.rotary import kernels

    counts = []
    for num_tokens in (1001, 1003, 1999):
        turn("triton", num_tokens, 8, device)(torch.zeros(1, num_tokens, 3, 12, device=device))
        counts.append(sum(len(cache[0]) for cache in kernels.turn.device_caches.values()))
    assert counts[0] == counts[-1]


@pytest.mark.gpu
@pytest.mark.parametrize("heads_first", [False, True])
def test_offsets_beyond_32_bits(heads_first: bool) -> None:
    shape = (1, 64, 300_000, 128) if heads_first else (1, 300_000, 64, 128)
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    x = x.transpose(1, 2) if heads_first else x
    x[:, -3:] = random(1, 3, 64, 128, dtype=torch.bfloat16).cuda()
    (out,) = turn("triton", 300_000, 64, "cuda", start=0)(x)
    (expected,) = turn("triton", 3, 64, "cuda", start=299_997)(x[:, -3:].clone())
    assert torch.equal(out[:, -3:], expected)
