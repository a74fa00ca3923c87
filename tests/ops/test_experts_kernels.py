"""The experts' Triton body: in Triton's interpreter on a CPU, compiled on a GPU, the same tests."""

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from exactness import assert_within_noise, random, with_gradients
from expert_cases import DTYPES, Size, in_dtypes
from torch.nn.functional import silu

from leyden.ops import drop_over_capacity, route, swiglu_experts
from leyden.ops.experts.sort import sort_by_expert

launch = importlib.import_module("leyden.ops.experts.launch")

D, F = 24, 40
NAMES = ("output", "dx", "dgate_up", "ddown", "dweights")


def draw(num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype, width: int = F) -> list[torch.Tensor]:
    """x, gate_up, down and the weights of the assignments."""
    return [
        random(num_tokens, D, dtype=dtype, seed=1),
        random(num_experts, 2 * width, D, seed=2).div(D**0.5).to(dtype),
        random(num_experts, D, width, seed=3).div(width**0.5).to(dtype),
        random(num_tokens, top_k, seed=4).softmax(-1).float(),
    ]


def by_formula(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """One assignment after another, each product in the dtype of x."""
    total = [torch.zeros(x.shape[1])] * len(x)
    for n, j in torch.cartesian_prod(torch.arange(len(x)), torch.arange(experts.shape[1])).tolist():
        if kept is None or kept[n, j]:
            gate, up = (gate_up[experts[n, j]] @ x[n]).chunk(2)
            total[n] = total[n] + weights[n, j] * (down[experts[n, j]] @ (silu(gate) * up))
    return torch.stack(total).to(x.dtype) + 0 * (x + (gate_up.sum() + down.sum() + weights.sum()).to(x.dtype))


def check(inputs: list[torch.Tensor], experts: torch.Tensor, kept: torch.Tensor | None, device: str) -> None:
    """Output and all gradients under the precision rule."""
    there, kept_there = experts.to(device), None if kept is None else kept.to(device)
    mine = with_gradients(
        lambda *x: [swiglu_experts(*x[:3], there, x[3], kept_there, "triton")], [x.to(device) for x in inputs]
    )
    plain = with_gradients(lambda *x: [by_formula(*x, experts, kept)], inputs)
    exact = with_gradients(
        lambda *x: [swiglu_experts(*x[:3], experts, x[3], kept, "reference")], [x.double() for x in inputs]
    )
    for name, a, p, e in zip(NAMES, mine, plain, exact, strict=True):
        assert_within_noise(a.cpu(), p, e, what=name)
        assert a.dtype == p.dtype


@pytest.mark.parametrize(("size", "dtype"), in_dtypes((19, 4, 2, 6), [(1, 1, 1, 1), (17, 32, 2, 1), (7, 5, 5, 3)]))
def test_routed_tokens(size: Size, dtype: torch.dtype, device: str) -> None:
    num_tokens, num_experts, top_k, capacity = size
    inputs = draw(num_tokens, num_experts, top_k, dtype)
    routing = route(random(num_tokens, num_experts, seed=5), top_k)
    check(inputs, routing.experts, None, device)
    check(inputs, routing.experts, drop_over_capacity(routing, capacity, "probability").kept, device)


@pytest.mark.parametrize("width", [1016, 1024, 1032])
def test_widths_around_a_block(width: int, device: str) -> None:
    inputs = draw(5, 2, 1, torch.float32, width)
    check(inputs, torch.tensor([[0], [1], [0], [0], [1]]), None, device)


def test_rows_wider_than_a_block(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_BLOCK", 16)
    inputs = draw(6, 3, 2, torch.float32)
    experts = torch.tensor([[0, 2], [2, 1], [0, 1], [1, 2], [2, 0], [1, 0]])
    check(inputs, experts, None, device)
    check(inputs, experts, experts < 2, device)


def test_rows_keep_the_order_of_assignments_and_dropped_ones_take_none(device: str) -> None:
    experts = torch.tensor([[3, 1], [1, 3], [0, 3]], device=device)
    kept = torch.tensor([[True, True], [False, True], [True, True]], device=device)
    order, row_of, ends = sort_by_expert(experts, kept, 5)
    assert ends.tolist() == [1, 2, 2, 5, 5]
    assert order.tolist() == [4, 1, 0, 3, 5, 2]
    assert row_of.tolist() == [2, 1, 5, 3, 0, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_without_tokens_have_zero_gradients(dtype: torch.dtype, device: str) -> None:
    inputs = [x.to(device) for x in draw(9, 5, 2, dtype)]
    experts = torch.tensor([[3, 1]], device=device).expand(9, 2)
    op = functools.partial(swiglu_experts, experts=experts, backend="triton")
    _, _, gate_up, down, _ = with_gradients(lambda *x: [op(*x[:3], weights=x[3])], inputs)
    for idle in (0, 2, 4):
        assert not gate_up[idle].any()
        assert not down[idle].any()
    for busy in (1, 3):
        assert gate_up[busy].any()
        assert down[busy].any()


@pytest.mark.parametrize("rows", [[0, 0, 0], [4, 0, 0, 3, 0], [0, 5], [2]])
def test_only_gradients_of_experts_without_tokens_are_cleared(rows: list[int], device: str) -> None:
    """As grouped products may leave them: whatever was there before."""
    E, ends = len(rows), torch.tensor(rows).cumsum(0).to(torch.int32).to(device)
    dgate_up, ddown = (torch.full(shape, torch.nan, device=device) for shape in ((E, 2 * F, D), (E, D, F)))
    launch.kernels.clear_idle[(E, 3)](dgate_up, ddown, ends, D=D, F=F, BLOCK=128)
    for gradient in (dgate_up, ddown):
        for expert, count in zip(gradient, rows, strict=True):
            assert expert.isnan().all() if count else not expert.any()


def test_experts_without_tokens_where_grouped_products_leave_them(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Blackwell of data centres."""

    def leaving(a: torch.Tensor, b: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
        out = torch.nn.functional.grouped_mm(a, b, offs=offs)
        if out.ndim == 3:
            out[offs == torch.cat([offs.new_zeros(1), offs[:-1]])] = torch.nan
        return out

    monkeypatch.setattr(launch, "grouped_mm", leaving)
    check(draw(9, 5, 2, torch.float32), torch.tensor([[3, 1]]).expand(9, 2), None, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_assignments_dropped(dtype: torch.dtype, device: str) -> None:
    experts, kept = torch.tensor([[0, 2]], device=device).expand(6, 2), torch.zeros(6, 2, dtype=torch.bool).to(device)
    inputs = [x.to(device) for x in draw(6, 3, 2, dtype)]
    for result in with_gradients(lambda *x: [swiglu_experts(*x[:3], experts, x[3], kept, "triton")], inputs):
        assert torch.equal(result, torch.zeros_like(result))


def test_a_dropped_assignment_is_no_read(device: str) -> None:
    """Not a product by zero: infinite weights of a dropped expert do no harm."""
    inputs = [x.to(device) for x in draw(4, 2, 2, torch.float32)]
    inputs[1][1] = torch.inf
    experts = torch.tensor([[0, 1]], device=device).expand(4, 2)
    kept = torch.tensor([[True, False]], device=device).expand(4, 2)
    x, gate_up, down, weights = inputs
    assert swiglu_experts(x, gate_up, down, experts, weights, kept, "triton").isfinite().all()


def test_no_tokens(device: str) -> None:
    inputs = [x.to(device) for x in draw(0, 3, 2, torch.float32)]
    experts = torch.zeros(0, 2, dtype=torch.int64, device=device)
    out, dx, dgate_up, ddown, dweights = with_gradients(
        lambda *x: [swiglu_experts(*x[:3], experts, x[3], None, "triton")], inputs
    )
    assert (out.shape, dx.shape, dweights.shape) == ((0, D), (0, D), (0, 2))
    assert not dgate_up.any()
    assert not ddown.any()


def test_views_are_read_as_their_copies(device: str) -> None:
    inputs, experts = draw(10, 3, 2, torch.float32), torch.tensor([[0, 2], [2, 1]]).repeat(5, 1).to(device)

    def of(views: bool) -> list[torch.Tensor]:
        def op(*wide: torch.Tensor) -> list[torch.Tensor]:
            parts = [w[..., 1:-2] if views else w[..., 1:-2].contiguous() for w in wide]
            return [swiglu_experts(*parts[:3], experts, parts[3], None, "triton")]

        return with_gradients(op, [torch.nn.functional.pad(x, (1, 2)).to(device) for x in inputs])

    assert all(torch.equal(a, b) for a, b in zip(of(True), of(False), strict=True))


def test_the_same_bits_again(device: str) -> None:
    inputs = [x.to(device) for x in draw(30, 4, 2, torch.float32)]
    experts = route(random(30, 4, seed=5), 2).experts.to(device)
    once, again = (
        with_gradients(lambda *x: [swiglu_experts(*x[:3], experts, x[3], None, "triton")], inputs) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("drop", [False, True])
def test_nothing_breaks_the_graph(drop: bool, device: str) -> None:
    inputs = [x.to(device) for x in draw(8, 3, 2, torch.float32)]
    experts = route(random(8, 3, seed=5), 2).experts.to(device)
    kept = experts != 1 if drop else None

    def op(*x: torch.Tensor) -> list[torch.Tensor]:
        return [swiglu_experts(2 * x[0], *x[1:3], experts, x[3], kept, "triton")]

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_gradients(compiled, inputs), with_gradients(op, inputs), strict=True):
        torch.testing.assert_close(a, b)
    # Rows of dropped assignments are undefined: two calls agree in what is defined, which the comparison above holds.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(launch._forward, (*inputs[:3], experts, inputs[3], kept), test_utils=tests)


@pytest.mark.gpu
def test_the_host_never_waits(no_reading_back: Callable[[], AbstractContextManager[None]]) -> None:
    """In bfloat16, on a GPU whose grouped products read their groups' bounds on the device."""
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("grouped products ask the host on this GPU")
    inputs = [x.cuda() for x in draw(64, 4, 2, torch.bfloat16)]
    leaves = [x.requires_grad_() for x in inputs]
    logits = random(64, 4, dtype=torch.float32, seed=5).cuda()

    def step() -> None:
        routing = drop_over_capacity(route(logits, 2, "triton"), 20, "probability")
        out = swiglu_experts(*leaves[:3], routing.experts, leaves[3], routing.kept)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    step()  # compiles
    with no_reading_back():
        step()


@pytest.mark.parametrize(("dim", "width", "num_experts"), [(20, 40, 2), (24, 30, 2), (8, 8, 1024)])
def test_shapes_that_grouped_products_do_not_take_are_refused(
    dim: int, width: int, num_experts: int, device: str
) -> None:
    x = torch.zeros(2, dim, dtype=torch.bfloat16, device=device)
    gate_up, down = x.new_zeros(num_experts, 2 * width, dim), x.new_zeros(num_experts, dim, width)
    experts, weights = torch.zeros(2, 1, dtype=torch.int64, device=device), torch.ones(2, 1, device=device)
    with pytest.raises(ValueError, match="swiglu_experts: backend='triton' cannot run: grouped_mm"):
        swiglu_experts(x, gate_up, down, experts, weights, backend="triton")
    assert not swiglu_experts(x, gate_up, down, experts, weights).any()
