"""Experts shared by four ranks beside one process with all of them: outputs, every gradient, and the order of events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from torch.utils.checkpoint import checkpoint

from leyden.model import ModelConfig
from leyden.model.experts import Experts, MixtureOfExperts
from leyden.ops import Routing, drop_over_capacity, route, swiglu_experts
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.experts import ExpertExchange, install_experts, record_events
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
        recompute: under activation checkpointing.
        seed: of all random numbers.
    """

    num_tokens: tuple[int, ...]
    top_k: int = 2
    favourite: float = 0.0
    avoided: int = 0
    capacity: int | None = None
    token_groups: int = 1
    dtype: torch.dtype = torch.float64
    recompute: bool = False
    seed: int = 0


@dataclass
class Batch:
    """The tensors of a case, of all ranks."""

    x: torch.Tensor
    logits: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    dout: torch.Tensor


def _batch(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    N = sum(case.num_tokens)
    logits = draw(N, E)
    logits[:, 3] += case.favourite
    logits[:, E - case.avoided :] -= 100
    x, gate_up, down, dout = (t.to(case.dtype) for t in (draw(N, D), draw(E, 2 * F, D), draw(E, D, F), draw(N, D)))
    return Batch(x, logits if case.dtype == torch.float64 else logits.float(), gate_up, down, dout)


def _routing(case: Case, logits: torch.Tensor, kept: torch.Tensor | None) -> Routing:
    routing = route(logits, case.top_k)
    return routing if kept is None else replace(routing, weights=routing.weights * kept, kept=kept)


def _kept(case: Case, batch: Batch) -> torch.Tensor | None:
    if case.capacity is None:
        return None
    return drop_over_capacity(route(batch.logits, case.top_k), case.capacity, "probability").kept


def _one_process(case: Case) -> dict[str, torch.Tensor]:
    batch = _batch(case)
    leaves = [t.requires_grad_() for t in (batch.x, batch.logits, batch.gate_up, batch.down)]
    routing = _routing(case, batch.logits, _kept(case, batch))
    out = swiglu_experts(batch.x, batch.gate_up, batch.down, routing.experts, routing.weights, routing.kept)
    grads = torch.autograd.grad(out, leaves, batch.dout)
    return dict(zip(("out", "x", "logits", "gate_up", "down"), (out.detach(), *grads), strict=True))


def _on_a_rank(plan: Plan, cases: Sequence[Case]) -> list[dict[str, torch.Tensor]]:
    """A rank's outputs and gradients, one dictionary a case."""
    mesh, results = mesh_of(plan), []
    for case in cases:
        grouped = replace(mesh, plan=replace(plan, settings=ParallelConfig(token_groups=case.token_groups)))
        batch, exchange = _batch(case), ExpertExchange(grouped)
        start = sum(case.num_tokens[: mesh.index("stage")])
        own = slice(start, start + case.num_tokens[mesh.index("stage")])
        kept = _kept(case, batch)
        gate_up = part_of("layers.0.mlp.experts.gate_up_proj", (E, 2 * F, D), plan, mesh.at).cut(batch.gate_up)
        down = part_of("layers.0.mlp.experts.down_proj", (E, D, F), plan, mesh.at).cut(batch.down)
        leaves = [t.clone().requires_grad_() for t in (batch.x[own], batch.logits[own], gate_up, down)]

        def compute(x: torch.Tensor, logits: torch.Tensor, *experts: torch.Tensor, **of: Any) -> torch.Tensor:
            routing = _routing(of["case"], logits, None if of["kept"] is None else of["kept"][of["own"]])
            return of["exchange"](x * 1, *experts, routing)

        of = {"case": case, "kept": kept, "own": own, "exchange": exchange}
        out = checkpoint(compute, *leaves, use_reentrant=False, **of) if case.recompute else compute(*leaves, **of)
        assert isinstance(out, torch.Tensor)
        grads = torch.autograd.grad(out, leaves, batch.dout[own])
        results.append(dict(zip(("out", "x", "logits", "gate_up", "down"), (out.detach(), *grads), strict=True)))
    return results


def _assembled(plan: Plan, of_ranks: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of all ranks one behind the other; gradients of weights summed over the ranks that have them."""
    from leyden.parallel import coordinates

    whole = {name: torch.cat([rank[name] for rank in of_ranks]) for name in ("out", "x", "logits")}
    for name, shape in (("gate_up", (E, 2 * F, D)), ("down", (E, D, F))):
        total = torch.zeros(shape, dtype=whole["out"].dtype)
        for rank, found in enumerate(of_ranks):
            part = part_of(f"layers.0.mlp.experts.{name}_proj", shape, plan, coordinates(plan, rank))
            for box in part.boxes():
                place = tuple(slice(at, at + size) for at, size in zip(box.whole, box.sizes, strict=True))
                total[place] += box.of(found[name])
        whole[name] = total
    return whole


def _errors(
    ranks: Callable[..., list[Any]], plan: Plan, cases: Sequence[Case]
) -> list[tuple[Case, str, torch.Tensor, torch.Tensor]]:
    """What four ranks found and what one process finds."""
    by_rank = ranks(4, _on_a_rank, plan, list(cases))
    pairs = []
    for index, case in enumerate(cases):
        found, expected = _assembled(plan, [rank[index] for rank in by_rank]), _one_process(case)
        pairs += [(case, name, found[name], expected[name]) for name in expected]
    return pairs


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
    Case((13, 17, 12, 19), top_k=3, capacity=20, token_groups=3, seed=9, recompute=True),
    Case((5, 7, 3, 6), token_groups=2, seed=10, recompute=True),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_ranks_compute_what_one_process_does(ranks: Callable[..., list[Any]], plan: Plan) -> None:
    for case, name, found, expected in _errors(ranks, plan, EXACT):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12, msg=lambda m: f"{case}, {name}: {m}")
