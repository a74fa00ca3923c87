"""Experts shared by four ranks beside one process with all of them: outputs, all gradients, and the order of events."""

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from gloo_ranks import mesh_of
from live_memory import LiveMemory, track_memory
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from leyden.ops import Routing, drop_over_capacity, route, swiglu_experts
from leyden.parallel import ParallelConfig, Plan, coordinates
from leyden.parallel.experts import Event, ExpertExchange, record_events
from leyden.parallel.experts.dispatch import start_all_to_all
from leyden.parallel.experts.recorded_op import RecordedOp
from leyden.parallel.traffic import count_traffic
from leyden.parallel.weights import part_of

EP4 = Plan(dp_shard=4, ep=4)
EP2_ETP2 = Plan(cp=2, tp=2, ep=2, etp=2)
ETP4 = Plan(dp_shard=2, tp=2, etp=4)
EP2 = Plan(dp_shard=4, ep=2)  # two copies of every expert
PLANS = [EP4, EP2_ETP2, ETP4, EP2]

D, F, E = 8, 12, 8


@dataclass(frozen=True)
class Case:
    """A micro-batch of all ranks.

    Attributes:
        num_tokens: of every rank.
        top_k: experts a token.
        favourite: what is added to the logit of expert 3; at 100 it is everybody's first choice.
        avoided: experts that nobody chooses.
        capacity: of an expert, or None.
        token_groups: of every rank.
        dtype: of tokens and weights.
        recompute: what of activations is computed again; ``exchanges`` keeps what the ranks exchanged.
        seed: of all random numbers.
    """

    num_tokens: tuple[int, ...]
    top_k: int = 2
    favourite: float = 0.0
    avoided: int = 0
    capacity: int | None = None
    token_groups: int = 1
    dtype: torch.dtype = torch.float64
    recompute: Literal["none", "all", "exchanges"] = "none"
    seed: int = 0


@dataclass
class Batch:
    """The tensors of a case, of all ranks; ``kept`` is None without a capacity."""

    x: torch.Tensor
    logits: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    dout: torch.Tensor
    kept: torch.Tensor | None = None


def _batch(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    N = sum(case.num_tokens)
    logits = draw(N, E).to(torch.promote_types(case.dtype, torch.float32))
    logits[:, 3] += case.favourite
    logits[:, E - case.avoided :] -= 100
    batch = Batch(draw(N, D), logits, draw(E, 2 * F, D) / D**0.5, draw(E, D, F) / F**0.5, draw(N, D))
    for name in ("x", "gate_up", "down", "dout"):
        setattr(batch, name, getattr(batch, name).to(case.dtype))
    if case.capacity is not None:
        batch.kept = drop_over_capacity(route(logits, case.top_k), case.capacity, "probability").kept
    return batch


def _routing(case: Case, logits: torch.Tensor, kept: torch.Tensor | None) -> Routing:
    routing = route(logits, case.top_k)
    return routing if kept is None else replace(routing, weights=routing.weights * kept, kept=kept)


NAMES = ("out", "x", "logits", "gate_up", "down")


def _one_process(case: Case, wide: bool = False) -> dict[str, torch.Tensor]:
    """The output and the gradients; computed in float64 if ``wide``."""
    batch = _batch(case)
    given = [t.double() if wide else t for t in (batch.x, batch.logits, batch.gate_up, batch.down, batch.dout)]
    leaves = [t.clone().requires_grad_() for t in given[:4]]
    x, logits, gate_up, down = leaves
    routing = _routing(case, logits, batch.kept)
    out = swiglu_experts(x, gate_up, down, routing.experts, routing.weights, routing.kept)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, given[4])), strict=True))


def _leaves(plan: Plan, case: Case) -> tuple[Callable[..., torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """What a rank computes, of which tensors, and the gradient of the result."""
    mesh, batch = mesh_of(plan), _batch(case)
    grouped = replace(mesh, plan=replace(plan, settings=ParallelConfig(token_groups=case.token_groups)))
    exchange = ExpertExchange(grouped)
    start = sum(case.num_tokens[: mesh.index("stage")])
    own = slice(start, start + case.num_tokens[mesh.index("stage")])
    gate_up = part_of("layers.0.mlp.experts.gate_up_proj", (E, 2 * F, D), plan, mesh.at).cut(batch.gate_up)
    down = part_of("layers.0.mlp.experts.down_proj", (E, D, F), plan, mesh.at).cut(batch.down)
    kept = None if batch.kept is None else batch.kept[own]

    def compute(x: torch.Tensor, logits: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return exchange(x * 1, gate_up, down, _routing(case, logits, kept))

    contexts: dict[str, Any] = {}
    if case.recompute == "exchanges":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_exchanges)
    if case.recompute != "none":
        compute = partial(checkpoint, compute, use_reentrant=False, **contexts)
    return (
        compute,
        [t.clone().requires_grad_() for t in (batch.x[own], batch.logits[own], gate_up, down)],
        batch.dout[own],
    )


def _keep_exchanges(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = op._schema.name == "_c10d_functional::all_to_all_single"
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _on_a_rank(plan: Plan, cases: Sequence[Case]) -> list[dict[str, torch.Tensor]]:
    """A rank's outputs and gradients, one dictionary a case."""
    results = []
    for case in cases:
        compute, leaves, dout = _leaves(plan, case)
        out = compute(*leaves)
        results.append(dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, leaves, dout)), strict=True)))
    return results


def _assembled(plan: Plan, of_ranks: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of all ranks one behind the other; gradients of weights summed over the ranks that have them."""
    whole = {name: torch.cat([rank[name] for rank in of_ranks]) for name in ("out", "x", "logits")}
    for name, shape in (("gate_up", (E, 2 * F, D)), ("down", (E, D, F))):
        total = torch.zeros(shape, dtype=torch.promote_types(of_ranks[0][name].dtype, torch.float32))
        for rank, found in enumerate(of_ranks):
            part = part_of(f"layers.0.mlp.experts.{name}_proj", shape, plan, coordinates(plan, rank))
            for box in part.boxes():
                place = tuple(slice(at, at + size) for at, size in zip(box.whole, box.sizes, strict=True))
                total[place] += box.of(found[name])
        whole[name] = total.to(of_ranks[0][name].dtype)
    return whole


EXACT = [
    Case((5, 7, 3, 6)),
    Case((5, 7, 3, 6), token_groups=2, seed=1),
    Case((1, 11, 2, 4), token_groups=3, capacity=4, seed=2),
    Case((0, 9, 0, 5), token_groups=2, seed=3),  # ranks without tokens
    Case((3, 0, 0, 0), top_k=1, token_groups=3, seed=4),  # groups without tokens
    Case((6, 5, 4, 3), favourite=100.0, top_k=1, seed=5),  # all to one expert
    Case((6, 5, 4, 3), favourite=100.0, capacity=2, token_groups=2, seed=6),
    Case((4, 4, 4, 4), avoided=5, top_k=3, token_groups=2, seed=7),  # most experts idle
    Case((9, 3, 5, 2), capacity=0, token_groups=2, seed=8),  # everything dropped
    Case((13, 17, 12, 19), top_k=3, capacity=20, token_groups=3, seed=9, recompute="all"),
    Case((5, 7, 3, 6), token_groups=2, seed=10, recompute="exchanges"),
]


def _random_cases(world: int, count: int) -> list[Case]:
    generator = torch.Generator().manual_seed(world)

    def up_to(most: int) -> int:
        return int(torch.randint(most + 1, (), generator=generator))

    return [
        Case(
            num_tokens=tuple(max(0, up_to(30) - 6) for _ in range(world)),
            top_k=1 + up_to(3),
            favourite=float(up_to(3)),
            avoided=up_to(4),
            capacity=up_to(4 * world) if up_to(1) else None,
            token_groups=1 + up_to(4),
            recompute=("none", "all", "exchanges")[up_to(2)],
            seed=100 + index,
        )
        for index in range(count)
    ]


def _assert_exact(ranks: Callable[..., list[Any]], plan: Plan, cases: Sequence[Case]) -> None:
    by_rank = ranks(plan.world, _on_a_rank, plan, cases)
    for index, case in enumerate(cases):
        found, expected = _assembled(plan, [rank[index] for rank in by_rank]), _one_process(case)
        for name in NAMES:
            assert found[name].dtype == expected[name].dtype
            error = (found[name] - expected[name]).abs().max() if found[name].numel() else 0.0
            assert error <= 1e-12, f"{case}: {name} is {error} off"


@pytest.mark.parametrize("plan", [pytest.param(EP4, marks=pytest.mark.slow), *PLANS[1:]], ids=str)
def test_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    _assert_exact(ranks, plan, EXACT + _random_cases(4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_ranks_compute_what_one_process_does_in_more_cases(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    _assert_exact(ranks, plan, _random_cases(4, 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        Plan(dp_shard=8, ep=8),
        Plan(dp_shard=2, cp=2, tp=2, ep=4, etp=2),
        Plan(dp_shard=4, tp=2, ep=2, etp=4),
        Plan(dp_shard=2, cp=4, ep=2, etp=2),  # two copies of every expert
        Plan(dp_replicate=2, cp=2, tp=2, ep=2, etp=2),  # two replicas
    ],
    ids=str,
)
def test_eight_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    _assert_exact(ranks, plan, _random_cases(8, 12))


@pytest.mark.parametrize("plan", [EP4, EP2_ETP2], ids=str)
def test_bfloat16_is_within_its_own_noise(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    cases = [
        Case((150, 171, 97, 133), token_groups=2, dtype=torch.bfloat16, seed=seed, capacity=capacity)
        for seed, capacity in enumerate((None, 120))
    ]
    by_rank = ranks(4, _on_a_rank, plan, cases)
    for index, case in enumerate(cases):
        found, plain = _assembled(plan, [rank[index] for rank in by_rank]), _one_process(case)
        exact = _one_process(case, wide=True)
        for name in NAMES:
            noise = (plain[name].double() - exact[name]).norm()
            error = (found[name].double() - exact[name]).norm()
            assert error <= 2 * noise, f"{case}: {name} is {error} off, plain PyTorch {noise}"


def _events(plan: Plan, case: Case) -> list[Event]:
    compute, leaves, dout = _leaves(plan, case)
    with record_events() as events:
        torch.autograd.grad(compute(*leaves), leaves, dout)
    return events


def test_two_groups_overlap_in_this_order(ranks: Callable[..., list[Any]]) -> None:
    one_way = [
        "dispatch 0 issued",
        "dispatch 1 issued",
        "dispatch 0 done",
        "experts 0 computed",
        "combine 0 issued",
        "dispatch 1 done",
        "experts 1 computed",
        "combine 1 issued",
        "combine 0 done",
        "combine 1 done",
    ]
    expected = [f"{direction} {event}" for direction in ("forward", "backward") for event in one_way]
    for events in ranks(4, _events, EP4, Case((5, 0, 3, 6), token_groups=2)):
        assert [str(event) for event in events] == expected


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_while_experts_compute_other_groups_are_under_way(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    there, back = ("dispatch", "combine") if plan.etp == 1 else ("gather", "scatter")
    for recompute, ways in (("none", ["forward", "backward"]), ("all", ["forward", "forward", "backward"])):
        first, *others = ranks(4, _events, plan, Case((5, 7, 3, 6), token_groups=3, recompute=recompute))
        assert all(events == first for events in others), "collectives must be issued in the same order everywhere"
        each = len(first) // len(ways)
        for way, start in zip(ways, range(0, len(first), each), strict=True):
            events = first[start : start + each]
            at = {(event.stage, event.group, event.action): index for index, event in enumerate(events)}
            assert {event.direction for event in events} == {way}
            for group in range(3):
                computed = at["experts", group, "computed"]
                under_way = {
                    (stage, other)
                    for stage in ("dispatch", "gather", "scatter", "combine")
                    for other in range(3)
                    if at.get((stage, other, "issued"), each) < computed < at.get((stage, other, "done"), -1)
                }
                expected = {(there, group + 1)} | {(back, group - 1)}
                assert {(stage, other) for stage, other in expected if 0 <= other < 3} <= under_way


def _departs_before_the_other_is_there(plan: Plan) -> None:
    """Rank 1 leaves only when rank 0 says, over other ranks' group, that it has left."""
    mesh = mesh_of(plan)
    ep, world = mesh.groups["ep"], mesh.groups["world"]
    message = torch.zeros(1)
    if mesh.rank == 0:
        pending = start_all_to_all(torch.tensor([1.0, 2.0]), [1, 1], [1, 1], ep)
        torch.distributed.send(message, 1, world)
    else:
        torch.distributed.recv(message, 0, world)
        pending = start_all_to_all(torch.tensor([3.0, 4.0]), [1, 1], [1, 1], ep)
    assert pending.wait().tolist() == [[1.0, 3.0], [2.0, 4.0]][mesh.rank]


def test_who_departs_does_not_wait(ranks: Callable[..., list[Any]]) -> None:
    ranks(2, _departs_before_the_other_is_there, Plan(dp_shard=2, ep=2))


def _traffic(plan: Plan, case: Case) -> dict[tuple[str, str], int]:
    mesh = mesh_of(plan)
    compute, leaves, dout = _leaves(plan, case)
    with count_traffic(mesh) as traffic:
        torch.autograd.grad(compute(*leaves), leaves, dout)
    return traffic.by_operation()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_bytes_are_those_of_the_kept_assignments(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    case = Case((5, 7, 3, 6), capacity=4, token_groups=2)
    kept = _batch(case).kept
    assert kept is not None
    for recompute, ways in (("none", 2), ("all", 3), ("exchanges", 2)):
        counted = ranks(4, _traffic, plan, replace(case, recompute=recompute))
        payload = 2 * ways * int(kept.sum()) * D * 8
        counts = 4 * (1 if recompute != "all" else 2) * 2 * E * 8  # of every rank and group, each time it routes
        expected = {}
        if plan.ep > 1:
            expected["ep", "all_to_all"] = payload + counts
        if plan.etp > 1:
            expected["etp", "all_to_all"] = payload * (plan.etp - 1)
            expected["etp", "all_gather"] = 4 * (1 if recompute == "none" else 2) * 2 * E * 8
        total = {key: sum(rank.get(key, 0) for rank in counted) for key in {key for rank in counted for key in rank}}
        assert total == expected


def _kept_bytes(plan: Plan, case: Case) -> list[int]:
    """Of tensors that outlive the forward for its backward: without recomputation, and with."""
    found = []
    for recompute in ("none", "all"):
        compute, leaves, dout = _leaves(plan, replace(case, recompute=recompute))
        with track_memory(*leaves, dout) as memory:
            before = memory.current
            out = compute(*leaves)
            found.append(_settled(memory) - before)
            torch.autograd.grad(out, leaves, dout)
            del out
            found.append(_settled(memory) - before)
    return found


def _settled(memory: LiveMemory) -> int:
    """What is held once the threads of the collectives have let go of what they sent."""
    lowest = memory.current
    for _ in range(15):
        time.sleep(0.02)
        lowest = min(lowest, memory.current)
    return lowest


def test_recomputation_frees_what_the_experts_keep(ranks: Callable[..., list[Any]]) -> None:
    """The output and where tokens went stay, and nothing after the backward."""
    case = Case((400, 500, 300, 600), token_groups=2, dtype=torch.float32)
    row = (D + 2 * F) * 4  # a token at its expert and its projections
    for num_tokens, found in zip(case.num_tokens, ranks(4, _kept_bytes, EP4, case), strict=True):
        plain, after_plain, recomputed, after_recomputed = found
        assert plain > 300 * 2 * row
        assert recomputed < num_tokens * (D * 4 + 100)
        assert (after_plain, after_recomputed) == (0, 0), found


def test_a_recorded_gives_the_op_its_gradients_and_keeps_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in ((20, D), (2, 2 * F, D), (2, D, F))]
    experts, ones = torch.arange(20).view(20, 1) % 2, torch.ones(20, 1)
    for backend in ("reference", "torch", "auto"):

        def op(*tensors: torch.Tensor, backend: str = backend) -> torch.Tensor:
            return swiglu_experts(*tensors, experts, ones, backend=backend)  # type: ignore[misc]

        recorded = RecordedOp()
        out = recorded.record(op, *given)
        assert not out.requires_grad
        saved = recorded.release()
        assert saved
        found = [recorded.backward(saved, torch.ones_like(out)) for _ in range(2)]
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        expected = torch.autograd.grad(op(*leaves), leaves, torch.ones_like(out))
        for grads in found:
            torch.testing.assert_close(grads, expected, rtol=0, atol=0)
        there = weakref.ref(recorded)
        del recorded
        assert there() is None, "the graph and what it keeps refer to each other"
