"""Losses of single tokens, in every body: against the whole logits in float64, under whatever gradient comes back."""

import importlib.util
import math
import os

import pytest
import torch
from exactness import Op, assert_all_within_noise, examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import IGNORE_INDEX, linear_cross_entropy, linear_token_nll, native
from leyden.ops.cross_entropy.reference import linear_token_nll_reference

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(isinstance(native.load(), native.UnavailableError), reason="no C++ compiler")
)
INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
TRITON = pytest.param("triton", marks=pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off"))
BODIES = ["torch", NATIVE, TRITON]
bodies = pytest.mark.parametrize("backend", BODIES)
DTYPES = (torch.bfloat16, torch.float32)


def draw(num_tokens: int, vocab: int, dtype: torch.dtype, ignore_every: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    inputs = [random(num_tokens, 16, dtype=dtype, seed=1), random(vocab, 16, dtype=dtype, seed=2)]
    labels = torch.arange(num_tokens) * 7 % vocab
    if ignore_every:
        labels[::ignore_every] = IGNORE_INDEX
    return inputs, labels


def by_formula(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """The product in the dtype of the inputs, the losses in float32 at least."""
    logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
    z, valid = logits.logsumexp(-1), labels != IGNORE_INDEX
    nll = z - logits.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    return [nll.where(valid, 0), z.where(valid, 0)]


def check(backend: str, inputs: list[torch.Tensor], labels: torch.Tensor, mute: tuple[int, ...] = ()) -> None:
    """Both results and both gradients, under a random gradient of each element of the results that are not mute."""
    fast: Op = lambda h, w: linear_token_nll(h, w, labels, backend)  # noqa: E731
    plain: Op = lambda h, w: by_formula(h, w, labels)  # noqa: E731
    assert_all_within_noise(fast, plain, lambda h, w: linear_token_nll_reference(h, w, labels), inputs, mute=mute)


@bodies
@pytest.mark.parametrize("dtype", DTYPES)
@given(num_tokens=st.integers(1, 40), vocab=st.integers(2, 50), ignore_every=st.sampled_from([0, 2, 3]))
@examples(8)
def test_losses_and_gradients(backend: str, dtype: torch.dtype, num_tokens: int, vocab: int, ignore_every: int) -> None:
    inputs, labels = draw(num_tokens, vocab, dtype, ignore_every)
    check(backend, inputs, labels)


@bodies
@pytest.mark.parametrize("mute", [0, 1])
def test_one_result_alone_may_have_a_gradient(backend: str, mute: int) -> None:
    inputs, labels = draw(23, 31, torch.float32, 4)
    check(backend, inputs, labels, (mute,))


@bodies
def test_several_chunks_of_rows(backend: str) -> None:
    """So many words that the rows do not fit one chunk of logits, in the bodies for the CPU; PyTorch's own softmax adds
    up so many of them less exactly than its logsumexp, hence float64 for that body."""
    words, dtype = {"torch": (2_200_000, torch.float64), "native": (2_200_000, torch.float32)}.get(
        backend, (50, torch.float32)
    )
    labels = torch.tensor([0, IGNORE_INDEX, words - 1, 5, 7])
    check(backend, [random(5, 2, dtype=dtype, seed=1), random(words, 2, dtype=dtype, seed=2)], labels)


def test_gradients_by_finite_differences() -> None:
    inputs, labels = draw(6, 5, torch.float64, 4)
    leaves = [x.requires_grad_() for x in inputs]
    for backend in ("torch", "reference"):
        assert torch.autograd.gradcheck(lambda h, w, b=backend: linear_token_nll(h, w, labels, b), leaves)


@pytest.mark.parametrize("backend", ["reference", *BODIES])
def test_uniform_logits_by_hand(backend: str) -> None:
    labels = torch.tensor([0, 7, IGNORE_INDEX, 3])
    hidden = torch.zeros(4, 4, requires_grad=True)
    nll, log_z = linear_token_nll(hidden, torch.ones(8, 4), labels, backend)
    expected = [math.log(8) * (label >= 0) for label in labels.tolist()]
    torch.testing.assert_close(nll.tolist(), expected)
    torch.testing.assert_close(log_z.tolist(), expected)
    (gradient,) = torch.autograd.grad(log_z.sum(), hidden)
    torch.testing.assert_close(gradient, torch.tensor([1.0, 1, 0, 1])[:, None].expand(4, 4))


@pytest.mark.parametrize("backend", ["reference", *BODIES])
def test_no_tokens_at_all(backend: str) -> None:
    op: Op = lambda h, w: linear_token_nll(h, w, torch.empty(0, dtype=torch.int64), backend)  # noqa: E731
    nll, log_z, dhidden, dweight = with_gradients(op, [torch.ones(0, 16), torch.ones(9, 16)])
    assert nll.shape == log_z.shape == (0,) and dhidden.shape == (0, 16)
    assert torch.equal(dweight, torch.zeros(9, 16))


@pytest.mark.parametrize("backend", ["reference", *BODIES])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_their_weighted_sum_is_the_summed_loss(backend: str, z_loss: float) -> None:
    """Which forms its gradient before it is asked for one; weights may be zero or negative."""
    inputs, labels = draw(37, 29, torch.float32, 5)
    weights = torch.linspace(-1, 2, 37).where(torch.arange(37) % 4 != 0, 0)

    def singly(h: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        nll, log_z = linear_token_nll(h, w, labels, backend)
        return [(weights * (nll + z_loss * log_z.square())).sum()]

    def at_once(h: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
        loss, nll = linear_cross_entropy(h, w, labels, z_loss, backend, weights=weights.double())
        torch.testing.assert_close(nll, (weights * linear_token_nll(h, w, labels, backend)[0]).sum().detach())
        return [loss]

    for a, b in zip(with_gradients(at_once, inputs), with_gradients(singly, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@bodies
def test_weights_of_one_change_no_bit(backend: str) -> None:
    inputs, labels = draw(21, 33, torch.float32, 3)
    plain, weighted = (
        with_gradients(lambda h, w, k=k: [linear_cross_entropy(h, w, labels, 0.1, backend, **k)[0]], inputs)
        for k in ({}, {"weights": torch.ones(21)})
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, weighted, strict=True))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(5), r"weights \[N\] expected.*given \(5,\)"),
        (torch.ones(4, dtype=torch.int64), "given .* of torch.int64"),
        (torch.ones(4, requires_grad=True), "detach them, or weigh the losses of linear_token_nll"),
    ],
)
def test_weights_are_refused_that_cannot_be_meant(weights: torch.Tensor, message: str) -> None:
    inputs, labels = draw(4, 9, torch.float32, 0)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*inputs, labels, weights=weights)


@pytest.mark.parametrize("backend", ["reference", "torch", NATIVE])
def test_a_label_outside_the_vocabulary_is_refused(backend: str) -> None:
    inputs, _ = draw(2, 9, torch.float32, 0)
    with pytest.raises(ValueError, match=r"linear_token_nll: labels from 0 to 8, or -100, expected; given 9"):
        linear_token_nll(*inputs, torch.tensor([3, 9]), backend)


@bodies
def test_the_gradient_may_be_a_view_and_comes_twice(backend: str) -> None:
    """An expanded one, as of a mean; and the graph may be gone through again."""
    inputs, labels = draw(9, 12, torch.float32, 4)
    leaves = [x.requires_grad_() for x in inputs]
    nll, log_z = linear_token_nll(*leaves, labels, backend)
    loss = nll.sum() - 2 * log_z.mean()
    once, again = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_nothing_breaks_the_graph() -> None:
    inputs, labels = draw(10, 33, torch.float32, 3)

    def losses(hidden: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        return list(linear_token_nll(hidden * 2, weight, labels, "triton"))

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, inputs), with_gradients(losses, inputs), strict=True):
        torch.testing.assert_close(a, b)
