"""The router's Triton body: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from exactness import random, with_gradients

from leyden.ops import drop_over_capacity, route

launch = importlib.import_module("leyden.ops.routing.launch")

SHAPES = [(1, 1, 1), (3, 7, 1), (37, 32, 2), (5, 256, 8), (9, 5, 5), (17, 65, 3)]


def op(top_k: int, backend: str):
    def weights_and_probabilities(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        routing = route(logits, top_k, backend)
        return routing.weights, routing.probabilities

    return weights_and_probabilities


@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), SHAPES)
@pytest.mark.parametrize("mute", [(), (0,), (1,)])
def test_the_choice_and_its_gradients(
    num_tokens: int, num_experts: int, top_k: int, mute: tuple[int, ...], device: str
) -> None:
    """Either of the weights and the probabilities may get no gradient."""
    logits = 3 * random(num_tokens, num_experts, dtype=torch.float32)
    mine = with_gradients(op(top_k, "triton"), [logits.to(device)], mute=mute)
    exact = with_gradients(op(top_k, "reference"), [logits.double()], mute=mute)
    assert torch.equal(route(logits.to(device), top_k, "triton").experts.cpu(), route(logits, top_k, "torch").experts)
    for a, e in zip(mine, exact, strict=True):
        torch.testing.assert_close(a.cpu().double(), e, rtol=1e-6, atol=1e-6)


def test_equal_experts_are_taken_in_order_and_once(device: str) -> None:
    assert route(torch.zeros(2, 20, device=device), 3, "triton").experts.tolist() == [[0, 1, 2]] * 2
    far = torch.tensor([[-1e4, 0.0, -2e4, -3e4, -1e30]], device=device)
    assert route(far, 4, "triton").experts.tolist() == [[1, 0, 2, 3]]  # those that underflow to zero tie
    shut = torch.full((1, 6), -torch.inf, device=device)
    shut[0, 4] = 0
    routing = route(shut, 2, "triton")
    assert (routing.experts.tolist(), routing.weights.tolist()) == ([[4, 0]], [[1.0, 0.0]])


def test_undefined_logits_choose_experts_that_exist(device: str) -> None:
    routing = route(torch.full((1, 5), torch.nan, device=device), 2, "triton")
    assert routing.experts.tolist() == [[0, 1]]
    assert routing.weights.isnan().all()
    assert routing.probabilities.isnan().all()


def test_one_token_leaves_the_others_as_they_are(device: str) -> None:
    logits = random(9, 5, dtype=torch.float32).to(device)
    before = route(logits, 2, "triton")
    logits[4] = torch.nan
    after = route(logits, 2, "triton")
    others = torch.arange(9) != 4
    for name in ("experts", "weights", "probabilities"):
        assert torch.equal(getattr(after, name)[others], getattr(before, name)[others])


def test_no_tokens(device: str) -> None:
    results = with_gradients(op(2, "triton"), [torch.zeros(0, 4, device=device)])
    assert [x.shape for x in results] == [(0, 2), (0, 4), (0, 4)]


def test_views_are_read_as_their_copies(device: str) -> None:
    wide = random(6, 14, dtype=torch.float32).to(device)
    once, again = (
        with_gradients(lambda x, v=v: op(2, "triton")(x[:, ::2] if v else x[:, ::2].contiguous()), [wide])
        for v in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_same_bits_again(device: str) -> None:
    logits = random(40, 33, dtype=torch.float32).to(device)
    once, again = (with_gradients(op(2, "triton"), [logits]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_nothing_breaks_the_graph(device: str) -> None:
    """With the drop over capacity, which asks the host nothing either."""
    logits = random(12, 5, dtype=torch.float32).to(device)

    def dropped(x: torch.Tensor) -> list[torch.Tensor]:
        routing = drop_over_capacity(route(2 * x, 2, "triton"), 3, "probability")
        return [routing.weights, routing.probabilities]

    compiled = torch.compile(dropped, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, [logits]), with_gradients(dropped, [logits]), strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(launch._forward, (logits, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("by", ["probability", "position"])
def test_the_host_never_waits(by: str, no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    logits = random(40, 5, dtype=torch.float32).cuda().requires_grad_()

    def step() -> None:
        routing = drop_over_capacity(route(logits, 2, "triton"), 9, by)  # pyright: ignore[reportArgumentType]
        torch.autograd.grad(routing.weights, logits, torch.ones_like(routing.weights))

    step()  # compiles
    with no_reading_back():
        step()


def test_float32_alone(device: str) -> None:
    with pytest.raises(ValueError, match="route"):
        route(torch.zeros(2, 4, dtype=torch.float64, device=device), 1, "triton")
