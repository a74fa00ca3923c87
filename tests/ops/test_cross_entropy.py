"""Fused cross-entropy against the whole logits in float64: losses, z-loss, ignored labels, both gradients."""

import math

import pytest
import torch
from exactness import assert_all_within_noise, examples, random
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from leyden.ops import IGNORE_INDEX, linear_cross_entropy

DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def draw(num_tokens: int, vocab: int, dtype: torch.dtype, ignore_every: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    inputs = [random(num_tokens, 16, dtype=dtype, seed=1), random(vocab, 16, dtype=dtype, seed=2)]
    labels = torch.arange(num_tokens) * 7 % vocab
    if ignore_every:
        labels[::ignore_every] = IGNORE_INDEX
    return inputs, labels


def by_formula(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float) -> list[torch.Tensor]:
    """The product in the dtype of the inputs, the losses in float32 at least."""
    logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
    z, valid = logits.logsumexp(-1), labels != IGNORE_INDEX
    nll = z - logits.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    return [(nll + z_loss * z.square())[valid].sum()]


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    num_tokens=st.integers(1, 40),
    vocab=st.integers(1, 50),
    ignore_every=st.sampled_from([0, 1, 2, 3]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.3]),
)
@examples(15)
def test_losses_and_gradients(
    dtype: torch.dtype, num_tokens: int, vocab: int, ignore_every: int, z_loss: float
) -> None:
    inputs, labels = draw(num_tokens, vocab, dtype, ignore_every)
    assert_all_within_noise(
        lambda h, w: [linear_cross_entropy(h, w, labels, z_loss)[0]],
        lambda h, w: by_formula(h, w, labels, z_loss),
        lambda h, w: [linear_cross_entropy(h, w, labels, z_loss, "reference")[0]],
        inputs,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_second_result_is_the_loss_without_the_z_loss(dtype: torch.dtype) -> None:
    (hidden, weight), labels = draw(20, 9, dtype, 3)
    hidden.requires_grad_()
    loss, nll = linear_cross_entropy(hidden, weight, labels, 0.0)
    with_z, same = linear_cross_entropy(hidden, weight, labels, 0.1)
    assert not nll.requires_grad
    assert loss.item() == pytest.approx(nll.item())
    assert same.item() == nll.item()
    assert with_z.item() > loss.item()


def test_uniform_logits_by_hand() -> None:
    hidden, weight = torch.zeros(5, 4), torch.zeros(8, 4)
    labels = torch.tensor([0, 7, IGNORE_INDEX, 3, IGNORE_INDEX])
    loss, nll = linear_cross_entropy(hidden, weight, labels, 0.5)
    assert nll.item() == pytest.approx(3 * math.log(8))
    assert loss.item() == pytest.approx(3 * math.log(8) + 3 * 0.5 * math.log(8) ** 2)


@pytest.mark.parametrize("z_loss", [0.0, 0.2])
def test_several_chunks_of_rows(z_loss: float) -> None:
    """So many words that the rows do not fit one chunk of logits."""
    hidden, weight = random(5, 2, seed=1), random(2_200_000, 2, seed=2)
    labels = torch.tensor([0, IGNORE_INDEX, 2_199_999, 5, 70])
    assert_all_within_noise(
        lambda h, w: [linear_cross_entropy(h, w, labels, z_loss)[0]],
        lambda h, w: by_formula(h, w, labels, z_loss),
        lambda h, w: [linear_cross_entropy(h, w, labels, z_loss, "reference")[0]],
        [hidden, weight],
    )


def test_gradients_scale_with_the_loss() -> None:
    inputs, labels = draw(12, 7, torch.float64, 4)
    leaves = [x.requires_grad_() for x in inputs]
    once = torch.autograd.grad(linear_cross_entropy(*leaves, labels, 0.1)[0], leaves)
    scaled = torch.autograd.grad(linear_cross_entropy(*leaves, labels, 0.1)[0] * -2.5, leaves)
    for a, b in zip(once, scaled, strict=True):
        torch.testing.assert_close(-2.5 * a, b)


def test_gradients_by_finite_differences() -> None:
    inputs, labels = draw(6, 5, torch.float64, 4)
    leaves = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, 0.2)[0], leaves)


def test_huge_logits_stay_finite() -> None:
    hidden, weight = torch.full((2, 1), 1e4), torch.tensor([[1.0], [-1.0]])
    loss, nll = linear_cross_entropy(hidden.requires_grad_(), weight, torch.tensor([0, 1]), 0.0)
    assert nll.item() == pytest.approx(2e4)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isfinite().all()


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is torch.ops.aten.mm
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_formed_where_none_can_be_asked_for(backend: str, off):
    (hidden, weight), labels = draw(5, 11, torch.float32, 0)
    weight = torch.nn.Parameter(weight)
    with Products() as training:
        loss, _ = linear_cross_entropy(hidden, weight, labels, backend=backend)
    with off(), Products() as evaluation:
        same, _ = linear_cross_entropy(hidden, weight, labels, backend=backend)
    assert (training.count, evaluation.count) == (3, 1)
    torch.testing.assert_close(same, loss.detach(), rtol=0, atol=0)
