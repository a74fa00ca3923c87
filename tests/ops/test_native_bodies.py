"""The native bodies against the references in float64, and against plain PyTorch in their own precision."""

import pytest
import torch
from exactness import Op, assert_all_within_noise, examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import (
    apply_rotary,
    drop_over_capacity,
    gated_rms_norm,
    linear_cross_entropy,
    native,
    rms_norm,
    rotary_angles,
    rotary_frequencies,
    route,
    softmax_attention,
    swiglu_experts,
)

pytestmark = pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler here")

BOTH = pytest.mark.parametrize("dtype", native.DTYPES)


def check(op: Op, inputs: list[torch.Tensor]) -> None:
    """``op(*inputs, backend)`` natively under the rule of precision, and the same bits when run again."""

    def body(backend: str) -> Op:
        return lambda *x: [op(*x, backend)]

    assert_all_within_noise(body("native"), body("torch"), body("reference"), inputs)
    once, again = with_gradients(body("native"), inputs), with_gradients(body("native"), inputs)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)


@BOTH
@given(rows=st.integers(1, 200), dim=st.integers(24, 90), scale=st.sampled_from([1e-12, 1.0, 1e12]))
@examples(15)
def test_norms(dtype: torch.dtype, rows: int, dim: int, scale: float) -> None:
    x, gate = random(rows, dim, dtype=dtype) * scale, 3 * random(rows, dim, dtype=dtype, seed=1)
    weight = 1 + random(dim, dtype=torch.float32, seed=2) / 4
    check(lambda x, w, backend: rms_norm(x, w, 1e-5, backend), [x, weight])
    check(lambda x, g, w, backend: gated_rms_norm(x, g, w, 1e-5, backend), [x, gate, weight])


@BOTH
@pytest.mark.parametrize("dim", [1, 8, 15, 17])
def test_narrow_norms(dtype: torch.dtype, dim: int) -> None:
    """So narrow that a gradient is too few numbers to tell noise by."""
    leaves = [random(7, dim, dtype=dtype).requires_grad_(), torch.linspace(0.5, 2, dim).requires_grad_()]
    y, plain = (rms_norm(*leaves, 1e-5, backend) for backend in ("native", "torch"))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y, plain, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(*(torch.autograd.grad(out.sum(), leaves) for out in (y, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=10 * tolerance)


@BOTH
def test_a_gate_wide_open_or_shut(dtype: torch.dtype) -> None:
    x, gate = random(6, 20, dtype=dtype), torch.tensor([1e30, 100, 30, -30, -100, -1e30], dtype=dtype)
    leaves = [x.requires_grad_(), gate[:, None].expand(6, 20).clone().requires_grad_(), torch.ones(20)]
    y = gated_rms_norm(*leaves, 1e-5, "native")
    plain = gated_rms_norm(*leaves, 1e-5, "torch")
    torch.testing.assert_close(y, plain, rtol=2e-2, atol=1e-30)
    for mine, theirs in zip(*(torch.autograd.grad(out.sum(), leaves[:2]) for out in (y, plain)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-12)


@BOTH
@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "capacity"), [(24, 1, 1, 15), (37, 5, 2, 9), (300, 2, 2, 250)]
)
def test_experts(dtype: torch.dtype, num_tokens: int, num_experts: int, top_k: int, capacity: int) -> None:
    """All have rows that only fill up; of fewer tokens the weights' gradient is too few numbers to tell noise by."""
    D, F = 21, 18
    routing = route(random(num_tokens, num_experts, seed=5), top_k)
    inputs = [
        random(num_tokens, D, dtype=dtype),
        random(num_experts, 2 * F, D, seed=2).div(D**0.5).to(dtype),
        random(num_experts, D, F, seed=3).div(F**0.5).to(dtype),
        routing.weights.float(),
    ]
    for kept in (None, drop_over_capacity(routing, capacity, "position").kept):
        check(lambda x, g, d, w, b, kept=kept: swiglu_experts(x, g, d, routing.experts, w, kept, b), inputs)


@BOTH
@given(rows=st.integers(0, 40), vocab=st.integers(2, 70), z_loss=st.sampled_from([0.0, 1e-2]), data=st.data())
@examples(20)
def test_cross_entropy(dtype: torch.dtype, rows: int, vocab: int, z_loss: float, data: st.DataObject) -> None:
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(0))
    ignored = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    labels[ignored] = -100
    inputs = [random(rows, 24, dtype=dtype), random(vocab, 24, dtype=dtype, seed=1)]
    check(lambda h, w, backend: linear_cross_entropy(h, w, labels, z_loss, backend)[0], inputs)


@BOTH
def test_cross_entropy_of_logits_far_apart(dtype: torch.dtype) -> None:
    hidden, weight = torch.eye(2, dtype=dtype) * 1e4, torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], dtype=dtype)
    loss, nll = linear_cross_entropy(hidden.requires_grad_(), weight, torch.tensor([0, 2]), backend="native")
    assert (loss.item(), nll.item()) == (pytest.approx(1e4, rel=1e-2), loss.item())
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(gradient, torch.tensor([[0.0, 0.0], [-1.0, 1.0]], dtype=dtype))


@given(num_tokens=st.integers(0, 50), num_experts=st.integers(1, 40), data=st.data())
@examples(20)
def test_route(num_tokens: int, num_experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    logits = 3 * random(num_tokens, num_experts, dtype=torch.float32)
    mine, plain = (route(logits, top_k, backend) for backend in ("native", "torch"))
    assert torch.equal(mine.experts, plain.experts)
    for result in ("weights", "probabilities"):
        a, e = (
            with_gradients(lambda x, b=backend, r=result: [getattr(route(x, top_k, b), r)], [logits.to(dtype)])
            for backend, dtype in (("native", torch.float32), ("reference", torch.float64))
        )
        torch.testing.assert_close([x.double() for x in a], e, rtol=1e-6, atol=1e-6)


def test_equal_experts_are_taken_in_order_and_once() -> None:
    assert route(torch.zeros(2, 20), 3, "native").experts.tolist() == [[0, 1, 2]] * 2
    undefined = route(torch.full((1, 4), torch.nan), 2, "native")
    assert undefined.experts.tolist() == [[0, 1]]
    assert undefined.weights.isnan().all()


def test_the_exponential_from_end_to_end() -> None:
    """Within 2e-7 of itself (and a rounding of the sum), down to where float32 ends."""
    x = torch.linspace(-110, 0, 20001)
    p = route(torch.stack([torch.zeros_like(x), x], 1), 1, "native").probabilities[:, 1].double()
    exact = x.double().exp() / (1 + x.double().exp())
    assert ((p - exact).abs() <= 4e-7 * exact + 1e-44).all()


@BOTH
@pytest.mark.parametrize(("tokens", "rotary_dim", "dim"), [(1, 2, 3), (5, 38, 64), (9, 64, 64), (4, 0, 8)])
@pytest.mark.parametrize("scale", [1.0, 1.1386])
def test_rotary(dtype: torch.dtype, tokens: int, rotary_dim: int, dim: int, scale: float) -> None:
    cos, sin = rotary_angles(torch.arange(7, 7 + tokens), rotary_frequencies(rotary_dim, 1e4))
    x = random(2, tokens, 3, dim, dtype=dtype)
    check(lambda x, backend: apply_rotary(x, cos, sin, backend, scale=scale), [x])


@BOTH
@pytest.mark.parametrize(
    ("queries", "keys", "bounds"), [(2, 2, None), (150, 150, None), (20, 4500, None), (300, 300, [0, 1, 140, 140, 300])]
)
def test_softmax_attention(dtype: torch.dtype, queries: int, keys: int, bounds: list[int] | None) -> None:
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    q = random(1, queries, 4, 10, dtype=dtype)
    k, v = (random(1, keys, 2, 10, dtype=dtype, seed=seed) for seed in (1, 2))
    check(lambda q, k, v, backend: softmax_attention(q, k, v, cu_seqlens, backend), [q, k, v])


def test_bfloat16_rounds_to_the_nearest_even_and_keeps_what_is_not_finite() -> None:
    """All values times 1, then all times a third, through an op that reads, multiplies in float32 and writes."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    values = values[(values.abs() >= torch.finfo(torch.bfloat16).tiny) | ~values.isfinite()].view(1, -1, 1, 1)
    x = torch.cat([values, torch.zeros_like(values)], dim=-1)
    for factor in (1.0, 1 / 3):
        cos = torch.full((x.shape[1], 1), factor)
        turned = apply_rotary(x, cos, torch.zeros_like(cos), "native")[..., 0]
        expected = (values[..., 0].float() * factor).to(torch.bfloat16)
        normal = expected.isnan() | (expected.abs() >= torch.finfo(torch.bfloat16).tiny)
        torch.testing.assert_close(turned[normal], expected[normal], rtol=0, atol=0, equal_nan=True)


@BOTH
def test_views_are_read_as_their_copies(dtype: torch.dtype) -> None:
    x = random(40, 2, 30, dtype=dtype)[:, 1]
    weight = torch.ones(30)
    assert torch.equal(rms_norm(x, weight, 1e-5, "native"), rms_norm(x.clone(), weight, 1e-5, "native"))
    logits = random(30, 6, dtype=torch.float32).t()
    assert torch.equal(route(logits, 2, "native").weights, route(logits.contiguous(), 2, "native").weights)
