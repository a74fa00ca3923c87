"""Scores and logits that a cap c takes from x to c tanh(x / c), in every op that has one: against the formula."""

import itertools
import math

import pytest
import torch
from exactness import Op, assert_all_within_noise, assert_within_noise, examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import (
    IGNORE_INDEX,
    linear_cross_entropy,
    linear_token_nll,
    paged_attention,
    paged_prompt_attention,
    ranged_attention,
    ranged_attention_backward,
    softmax_attention,
)

CAP = 1.5
"""Low enough that scores of normal numbers are far into the curve."""
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def draw(T: int, S: int, heads: tuple[int, int], dtype: torch.dtype, dim: int = 16) -> list[torch.Tensor]:
    sizes = ((T, heads[0]), (S, heads[1]), (S, heads[1]))
    return [random(1, n, h, dim, dtype=dtype, seed=seed) * 2 for seed, (n, h) in enumerate(sizes)]


def by_formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int] | None = None, window: int | None = None
) -> torch.Tensor:
    """One query and head at a time; scores in float32 at least, as fast bodies have them."""
    T, S, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = []
    for t, h in itertools.product(range(T), range(q.shape[2])):
        end = S - T + t + 1
        begin = max((b for b in bounds or [0] if b < end), default=0)
        begin = begin if window is None else max(begin, end - window)
        scores = (k[0, begin:end, h // group].to(wide) @ q[0, t, h].to(wide)) / math.sqrt(q.shape[3])
        p = (CAP * torch.tanh(scores / CAP)).softmax(0)
        rows.append(p.to(q.dtype) @ v[0, begin:end, h // group])
    return torch.stack(rows).view(q.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    T=st.integers(1, 24),
    past=st.integers(0, 20),
    window=st.sampled_from([None, 1, 5]),
    heads=st.sampled_from([(1, 1), (4, 2)]),
)
@examples(10)
def test_attention(dtype: torch.dtype, T: int, past: int, window: int | None, heads: tuple[int, int]) -> None:
    inputs = draw(T, T + past, heads, dtype)
    exact = with_gradients(lambda *x: [by_formula(*x, None, window)], [x.double() for x in inputs])
    twin: Op = lambda *x: [softmax_attention(*x, None, "reference", window=window, softcap=CAP)]  # noqa: E731
    for a, e in zip(with_gradients(twin, [x.double() for x in inputs]), exact, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)
    fast = with_gradients(lambda *x: [softmax_attention(*x, window=window, softcap=CAP)], inputs)
    tolerance = {torch.bfloat16: 0.03, torch.float32: 2e-5, torch.float64: 1e-11}[dtype]
    for a, e in zip(fast, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * max(1.0, float(e.abs().max())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 7, 130])
def test_packed_documents_of_many_blocks(dtype: torch.dtype, window: int | None) -> None:
    bounds = [0, 0, 1, 140, 143, 300]
    cu_seqlens, inputs = torch.tensor(bounds), draw(300, 300, (4, 2), dtype)
    seen = {"window": window, "softcap": CAP}
    assert_all_within_noise(
        lambda *x: [softmax_attention(*x, cu_seqlens, **seen)],
        lambda *x: [by_formula(*x, bounds, window)],
        lambda *x: [softmax_attention(*x, cu_seqlens, "reference", **seen)],
        inputs,
    )


def test_gradients_by_finite_differences() -> None:
    leaves = [x.requires_grad_() for x in draw(4, 6, (2, 1), torch.float64, dim=3)]
    assert torch.autograd.gradcheck(lambda *x: softmax_attention(*x, softcap=CAP), leaves)
    hidden, weight = (random(n, 3, seed=n).requires_grad_() for n in (5, 7))
    labels = torch.tensor([0, 6, IGNORE_INDEX, 2, 2])
    assert torch.autograd.gradcheck(lambda h, w: linear_token_nll(h, w, labels, softcap=CAP), [hidden, weight])


def test_a_high_cap_is_none_and_a_low_one_makes_all_keys_alike() -> None:
    q, k, v = draw(9, 9, (2, 2), torch.float64)
    torch.testing.assert_close(softmax_attention(q, k, v, softcap=1e6), softmax_attention(q, k, v), rtol=0, atol=1e-9)
    means = v.cumsum(1) / torch.arange(1, 10)[:, None, None]
    torch.testing.assert_close(softmax_attention(q, k, v, softcap=1e-9), means, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages(backend: str, dtype: torch.dtype) -> None:
    """One query a sequence, and a prompt's last ones; what lies behind the lengths is NaN."""
    page, lengths = 4, [0, 1, 11, 8]
    keys, values = (torch.full((9, page, 2, 16), math.nan, dtype=dtype) for _ in range(2))
    q, k, v = draw(4, 12, (4, 2), dtype)
    table = torch.tensor([[0, 0, 0], [5, 0, 0], [3, 8, 1], [7, 2, 0]], dtype=torch.int32)
    for pages, length in zip(table.tolist(), lengths, strict=True):
        for t in range(length):
            keys[pages[t // page], t % page], values[pages[t // page], t % page] = k[0, t], v[0, t]
    found = paged_attention(q[0], keys, values, table, torch.tensor(lengths).int(), backend, softcap=CAP)
    assert not found[0].any()
    tolerance = {torch.bfloat16: 0.02, torch.float32: 1e-5, torch.float64: 1e-11}[dtype]
    for row, length in enumerate(lengths[1:], start=1):
        exact = by_formula(*(x.double() for x in (q[:, row : row + 1], k[:, :length], v[:, :length])))
        torch.testing.assert_close(found[None, row : row + 1].double(), exact, rtol=0, atol=tolerance)
    prompt = paged_prompt_attention(q[0, :3], keys, values, table[2], 11, backend, softcap=CAP)
    exact = by_formula(*(x.double() for x in (q[:, :3], k[:, :11], v[:, :11])))
    torch.testing.assert_close(prompt[None].double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_ranges_that_merge(backend: str, dtype: torch.dtype) -> None:
    """A causal row in two halves of the keys, as a ring meets them: output and gradients are those of the whole."""
    inputs = draw(31, 31, (4, 2), dtype)
    exact = with_gradients(lambda *x: [by_formula(*x)], [x.double() for x in inputs])
    plain = with_gradients(lambda *x: [by_formula(*x)], inputs)
    q, k, v = (x[0] for x in inputs)
    last = torch.arange(1, 32)
    halves = [(slice(0, 13), last.clamp(max=13)), (slice(13, 31), (last - 13).clamp(min=0))]
    first = torch.zeros(31, dtype=torch.int32)
    parts = [ranged_attention(q, k[s], v[s], first, end.int(), backend, softcap=CAP) for s, end in halves]
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    out = sum(part * torch.exp(one - lse)[..., None] for part, one in parts)
    assert isinstance(out, torch.Tensor)
    dout = random(1, *out.shape, seed=100).to(dtype)[0]
    delta = (dout.to(out.dtype) * out).sum(-1)
    dq = torch.zeros_like(out)
    dkv: list[list[torch.Tensor]] = [[], []]
    for s, end in halves:
        more, *of_keys = ranged_attention_backward(
            dout, q, k[s], v[s], lse, delta, first, end.int(), backend, softcap=CAP
        )
        dq += more
        for kept, one in zip(dkv, of_keys, strict=True):
            kept.append(one)
    found = [out, dq, *(torch.cat(kept) for kept in dkv)]
    for name, f, e, p in zip(("out", "dq", "dk", "dv"), found, exact, plain, strict=True):
        assert_within_noise(f.to(dtype), p[0], e[0], what=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_losses(dtype: torch.dtype, z_loss: float) -> None:
    """Single tokens' and their weighted sum, beside the formula by autograd."""
    inputs = [random(37, 16, dtype=dtype, seed=1), random(29, 16, dtype=dtype, seed=2)]
    labels = torch.arange(37) * 7 % 29
    labels[::5] = IGNORE_INDEX
    weights = torch.linspace(-1, 2, 37)
    wide = torch.promote_types(dtype, torch.float32)

    def plain(hidden: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
        logits = CAP * torch.tanh(logits / CAP)
        z, valid = logits.logsumexp(-1), labels != IGNORE_INDEX
        nll = (z - logits.gather(1, labels.clamp_min(0)[:, None])[:, 0]).where(valid, 0)
        z = z.where(valid, 0)
        return [nll, z, (weights * (nll + z_loss * z.square())).sum()]

    def with_backend(backend: str) -> Op:
        def losses(hidden: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
            summed = linear_cross_entropy(hidden, weight, labels, z_loss, backend, weights=weights, softcap=CAP)
            return [*linear_token_nll(hidden, weight, labels, backend, softcap=CAP), summed[0]]

        return losses

    for a, e in zip(
        with_gradients(with_backend("reference"), [x.double() for x in inputs]),
        with_gradients(plain, [x.double() for x in inputs]),
        strict=True,
    ):
        torch.testing.assert_close(a, e)
    assert with_backend("auto")(*inputs)[0].dtype == wide
    assert_all_within_noise(with_backend("auto"), plain, with_backend("reference"), inputs)


@pytest.mark.parametrize("cap", [0.0, -1.0, math.inf, math.nan])
def test_a_cap_that_is_none_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match="softcap above 0 expected"):
        softmax_attention(*draw(5, 5, (1, 1), torch.float32), softcap=cap)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_bodies_without_a_cap_refuse_one(backend: str) -> None:
    q, k, v = draw(5, 5, (1, 1), torch.float32)
    with pytest.raises(ValueError, match=f"backend='{backend}' does not compute with a softcap"):
        softmax_attention(q, k, v, None, backend, softcap=CAP)
    with pytest.raises(ValueError, match=f"backend='{backend}' does not compute with a softcap"):
        linear_token_nll(q[0, :, 0], k[0, :, 0], torch.zeros(5, dtype=torch.int64), backend, softcap=CAP)
