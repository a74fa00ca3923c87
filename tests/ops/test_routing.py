"""Routing against a loop over tokens in plain Python."""

import math

import pytest
import torch
from exactness import examples, random, with_gradients
from hypothesis import given
from hypothesis import strategies as st

from leyden.ops import Groups, Routing, drop_over_capacity, expert_capacity, route, route_in_groups


def kept_by_loop(routing: Routing, capacity: int, by: str) -> list[list[bool]]:
    """Offer the assignments one by one, in the order of keeping, to experts that fill up."""
    experts, probabilities = routing.experts.tolist(), routing.probabilities.tolist()
    offers = [(n, j) for n in range(len(experts)) for j in range(len(experts[n]))]
    if by == "probability":
        offers.sort(key=lambda offer: -probabilities[offer[0]][experts[offer[0]][offer[1]]])  # stable
    taken: dict[int, int] = {}
    kept = [[False] * len(row) for row in experts]
    for n, j in offers:
        expert = experts[n][j]
        if taken.get(expert, 0) < capacity:
            taken[expert] = taken.get(expert, 0) + 1
            kept[n][j] = True
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(num_tokens=st.integers(0, 20), num_experts=st.integers(1, 9), data=st.data())
@examples(25)
def test_the_most_probable_experts_share_by_probability(
    dtype: torch.dtype, num_tokens: int, num_experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    logits = 3 * random(num_tokens, num_experts, dtype=dtype)
    routing = route(logits, top_k)
    assert routing.kept is None
    assert routing.logits is logits
    tolerance = 20 * torch.finfo(dtype).eps
    for n in range(num_tokens):
        powers = logits[n].double().exp()
        probabilities = powers / powers.sum()
        torch.testing.assert_close(routing.probabilities[n].double(), probabilities, rtol=tolerance, atol=0)
        order = sorted(range(num_experts), key=lambda e: -logits[n, e].item())[:top_k]
        assert routing.experts[n].tolist() == order
        shares = probabilities[order] / probabilities[order].sum()
        torch.testing.assert_close(routing.weights[n].double(), shares, rtol=tolerance, atol=0)


def test_gradients_of_the_shares_and_the_probabilities() -> None:
    def op(logits):
        routing = route(logits, 2)
        return routing.weights, routing.probabilities

    def by_formula(logits):
        powers = logits.exp()
        chosen = powers.gather(1, logits.topk(2).indices)
        return chosen / chosen.sum(-1, keepdim=True), powers / powers.sum(-1, keepdim=True)

    logits = random(7, 5)
    for a, b in zip(with_gradients(op, [logits]), with_gradients(by_formula, [logits]), strict=True):
        torch.testing.assert_close(a, b)


def routed_by_loop(logits: list[float], bias: list[float], top_k: int, groups: Groups, normalize: bool, scale: float):
    """DeepSeek-V3's equations 12 to 16 (and the limit to nodes) of one token, in plain Python: experts and weights."""
    p = [1 / (1 + math.exp(-x)) for x in logits]
    biased = [one + b for one, b in zip(p, bias, strict=True)]
    size, best = len(p) // groups.count, 2 if groups.score == "top2_sum" else 1
    of_group = [sum(sorted(biased[g * size :][:size])[-best:]) for g in range(groups.count)]
    allowed = sorted(range(groups.count), key=lambda g: -of_group[g])[: groups.chosen]
    order = sorted((e for e in range(len(p)) if e // size in allowed), key=lambda e: -biased[e])[:top_k]
    total = sum(p[e] for e in order) + 1e-20 if normalize else 1
    return order, [scale * p[e] / total for e in order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(num_tokens=st.integers(0, 9), count=st.integers(1, 4), size=st.integers(1, 4), data=st.data())
@examples(40)
def test_sigmoids_and_a_bias_choose_in_groups(
    dtype: torch.dtype, num_tokens: int, count: int, size: int, data: st.DataObject
) -> None:
    groups = Groups(count, data.draw(st.integers(1, count)), data.draw(st.sampled_from(["top2_sum", "max"])))
    top_k, normalize = data.draw(st.integers(1, groups.chosen * size)), data.draw(st.booleans())
    logits, bias = 2 * random(num_tokens, count * size, dtype=dtype), 0.4 * random(count * size, dtype=dtype)
    routing = route_in_groups(logits, bias, top_k, groups, normalize=normalize, scale=2.5)
    assert routing.kept is None
    assert routing.logits is logits
    for n in range(num_tokens):
        experts, weights = routed_by_loop(logits[n].tolist(), bias.tolist(), top_k, groups, normalize, 2.5)
        assert routing.experts[n].tolist() == experts
        expected = torch.tensor(weights, dtype=torch.float64)
        torch.testing.assert_close(routing.weights[n].double(), expected, rtol=20 * torch.finfo(dtype).eps, atol=0)
    scores = logits.sigmoid()
    torch.testing.assert_close(routing.probabilities, scores / scores.sum(-1, keepdim=True))


def test_gradients_of_sigmoid_weights_go_past_the_bias() -> None:
    bias = torch.tensor([0.0, 0.5, -0.5, 0.2, 0.0, 0.1], dtype=torch.float64)
    logits = random(7, 6)
    experts = route_in_groups(logits, bias, 2, Groups(3, 2)).experts

    def op(logits):
        routing = route_in_groups(logits, bias, 2, Groups(3, 2), scale=1.5)
        return routing.weights, routing.probabilities

    def by_formula(logits):
        p = 1 / (1 + (-logits).exp())
        chosen = p.gather(1, experts)
        return 1.5 * chosen / chosen.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)

    for a, b in zip(with_gradients(op, [logits]), with_gradients(by_formula, [logits]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("shape", "top_k", "groups", "said"),
    [
        ((3, 6), 2, Groups(4, 1), "groups that divide the 6 experts"),
        ((3, 6), 2, Groups(2, 3), "given 3 of 2"),
        ((3, 6), 4, Groups(3, 1), "top_k from 1 to the 2 experts of 1 groups"),
        ((3, 5), 2, Groups(), r"logits \[N, E\] and a bias \[E\] expected; given \(3, 5\) and \(6,\)"),
    ],
)
def test_groups_that_cannot_be_are_refused(shape: tuple[int, int], top_k: int, groups: Groups, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        route_in_groups(torch.zeros(shape), torch.zeros(6), top_k, groups)


@pytest.mark.parametrize("by", ["probability", "position"])
@given(
    num_tokens=st.integers(0, 30),
    num_experts=st.integers(1, 6),
    capacity=st.integers(0, 12),
    ties=st.booleans(),
    data=st.data(),
)
@examples(40)
def test_capacity_drops_what_the_loop_drops(
    by: str, num_tokens: int, num_experts: int, capacity: int, ties: bool, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    logits = random(num_tokens, num_experts, dtype=torch.float32)
    routing = route(torch.zeros_like(logits) if ties else logits, top_k)
    dropped = drop_over_capacity(routing, capacity, by)  # pyright: ignore[reportArgumentType]
    assert dropped.kept is not None
    assert dropped.kept.tolist() == kept_by_loop(routing, capacity, by)
    assert torch.equal(dropped.weights, torch.where(dropped.kept, routing.weights, 0.0))
    assert torch.equal(dropped.experts, routing.experts)
    assert torch.equal(dropped.probabilities, routing.probabilities)


def test_dropped_assignments_pass_no_gradient() -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0]], requires_grad=True)
    routing = drop_over_capacity(route(logits, 1), 1, "probability")
    assert routing.kept is not None
    assert routing.kept.tolist() == [[True], [False]]
    two = drop_over_capacity(route(logits, 2), 1, "position")
    (gradient,) = torch.autograd.grad(two.weights[:, 0].sum(), logits)
    assert gradient[0].abs().sum() > 0
    assert torch.equal(gradient[1], torch.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "capacity"),
    [((64, 8, 2, 1.0), 16), ((64, 8, 2, 1.25), 20), ((10, 4, 1, 1.0), 3), ((0, 4, 2, 1.0), 0), ((5, 32, 2, 1.0), 1)],
)
def test_capacity_rounds_up(arguments: tuple[int, int, int, float], capacity: int) -> None:
    assert expert_capacity(*arguments) == capacity
