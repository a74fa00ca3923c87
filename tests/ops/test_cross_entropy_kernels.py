"""The Triton body of the fused cross-entropy: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from exactness import assert_within_noise, random, with_gradients

from leyden.ops import IGNORE_INDEX, linear_cross_entropy

launch = importlib.import_module("leyden.ops.cross_entropy.launch")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def draw(num_tokens: int, vocab: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    inputs = [random(num_tokens, 24, dtype=dtype, seed=1), random(vocab, 24, dtype=dtype, seed=2)]
    labels = torch.arange(num_tokens) * 7 % vocab
    labels[::3] = IGNORE_INDEX
    return inputs, labels


def by_formula(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z_loss: float) -> list[torch.Tensor]:
    """The product in the dtype of the inputs, the losses in float32."""
    logits = (hidden @ weight.t()).float()
    z, valid = logits.logsumexp(-1), labels != IGNORE_INDEX
    nll = z - logits.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    return [(nll + z_loss * z.square())[valid].sum()]


def check(num_tokens: int, vocab: int, dtype: torch.dtype, z_loss: float, device: str) -> None:
    """Loss and both gradients under the precision rule."""
    inputs, labels = draw(num_tokens, vocab, dtype)
    at = labels.to(device)
    mine = with_gradients(
        lambda h, w: [linear_cross_entropy(h, w, at, z_loss, "triton")[0]], [x.to(device) for x in inputs]
    )
    plain = with_gradients(lambda h, w: by_formula(h, w, labels, z_loss), inputs)
    exact = with_gradients(
        lambda h, w: [linear_cross_entropy(h, w, labels, z_loss, "reference")[0]], [x.double() for x in inputs]
    )
    for name, a, p, e in zip(("loss", "dhidden", "dweight"), mine, plain, exact, strict=True):
        assert_within_noise(a.cpu(), p, e, what=name)
    assert [x.dtype for x in mine] == [torch.float32, dtype, dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(("num_tokens", "vocab"), [(2, 1), (17, 50), (5, 4097)])
def test_losses_and_gradients(dtype: torch.dtype, z_loss: float, num_tokens: int, vocab: int, device: str) -> None:
    check(num_tokens, vocab, dtype, z_loss, device)


@pytest.mark.parametrize("vocab", [4095, 4096, 12289])
def test_vocabularies_around_a_block(vocab: int, device: str) -> None:
    check(4, vocab, torch.float32, 1e-3, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_chunks_of_rows(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_CHUNK_ELEMENTS", 200)
    assert launch.chunk_rows(33) == 6
    check(20, 33, dtype, 0.1, device)


def test_a_chunk_is_whole_tiles_where_they_fit() -> None:
    assert [launch.chunk_rows(vocab) for vocab in (200_064, 1 << 21, 1 << 22, 1 << 40)] == [1280, 128, 64, 1]


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_without_labels_nothing_is_lost(num_tokens: int, device: str) -> None:
    inputs = [x.to(device) for x in draw(num_tokens, 9, torch.float32)[0]]
    labels = torch.full((num_tokens,), IGNORE_INDEX, device=device)
    for result in with_gradients(lambda h, w: [linear_cross_entropy(h, w, labels, 0.1, "triton")[0]], inputs):
        assert torch.equal(result, torch.zeros_like(result))


def test_logits_far_apart_stay_finite(device: str) -> None:
    hidden = (torch.eye(2, device=device) * 1e4).requires_grad_()
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], device=device)
    loss, nll = linear_cross_entropy(hidden, weight, torch.tensor([0, 2], device=device), 0.0, "triton")
    assert loss.item() == nll.item() == pytest.approx(1e4)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(gradient.cpu(), torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_a_label_outside_the_vocabulary_shows(device: str) -> None:
    """As NaN, on a GPU, whose labels the host does not look at."""
    hidden, weight = (x.to(device) for x in draw(2, 9, torch.float32)[0])
    labels = torch.tensor([3, 9], device=device)
    assert launch.token_nll(hidden, weight, labels, None).nll.isnan().tolist() == [False, True]


def test_the_second_result_is_the_loss_without_the_z_loss(device: str) -> None:
    (hidden, weight), labels = draw(7, 9, torch.float32)
    given = (hidden.to(device).requires_grad_(), weight.to(device), labels.to(device))
    loss, nll = linear_cross_entropy(*given, 0.0, "triton")
    with_z, same = linear_cross_entropy(*given, 0.1, "triton")
    assert not nll.requires_grad
    assert loss.item() == nll.item() == same.item() < with_z.item()


def test_gradients_scale_with_the_loss_and_views_are_read_as_copies(device: str) -> None:
    hidden, weight = (random(24, 48, dtype=torch.float32, seed=seed).to(device) for seed in (1, 2))
    labels = torch.arange(48, device=device) % 24

    def op(factor: float, views: bool):
        def run(h: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
            h, w = h.t(), w[:, ::2]
            h, w = (h, w) if views else (h.contiguous(), w.contiguous())
            return [linear_cross_entropy(h, w, labels, 0.1, "triton")[0] * factor]

        return run

    once = with_gradients(op(1.0, True), [hidden, weight])[1:]
    scaled = with_gradients(op(-2.5, False), [hidden, weight])[1:]
    for a, b in zip(once, scaled, strict=True):
        torch.testing.assert_close(-2.5 * a, b)


def test_without_gradients_none_are_formed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (hidden, weight), labels = draw(5, 9, torch.float32)
    monkeypatch.setattr(launch, "_add_product", None)
    with torch.no_grad():
        linear_cross_entropy(hidden.to(device).requires_grad_(), weight.to(device), labels.to(device), 0.0, "triton")


def test_the_same_bits_again(device: str) -> None:
    inputs, labels = draw(30, 5000, torch.float32)
    inputs, labels = [x.to(device) for x in inputs], labels.to(device)
    once, again = (
        with_gradients(lambda h, w: [linear_cross_entropy(h, w, labels, 0.1, "triton")[0]], inputs) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_nothing_breaks_the_graph(device: str) -> None:
    inputs, labels = draw(10, 33, torch.float32)
    inputs, labels = [x.to(device) for x in inputs], labels.to(device)

    def losses(hidden: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        return [linear_cross_entropy(hidden * 2, weight, labels, 0.1, "triton")[0]]

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, inputs), with_gradients(losses, inputs), strict=True):
        torch.testing.assert_close(a, b)
    for upstream, differentiate in (((None, None), False), ((torch.ones(10, device=device), None), True)):
        torch.library.opcheck(launch._pass, (*inputs, labels, *upstream, 0.1, differentiate))


@pytest.mark.gpu
def test_nothing_is_read_back(no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    inputs, labels = draw(30, 50, torch.bfloat16)
    inputs, labels = [x.cuda() for x in inputs], labels.cuda()

    def op(hidden: torch.Tensor, weight: torch.Tensor) -> None:
        linear_cross_entropy(hidden.requires_grad_(), weight, labels, 0.1, "triton")[0].backward()

    op(*inputs)
    with no_reading_back():
        op(*inputs)
