"""A capacity that four ranks spend together beside one process with all tokens; ties are made on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from torch import nn

from leyden.model import ModelConfig
from leyden.model import experts as alone
from leyden.model.balance import router_losses
from leyden.model.experts import MixtureOfExperts
from leyden.ops import Routing, drop_over_capacity, expert_capacity, route
from leyden.parallel import ParallelConfig, Plan
from leyden.parallel.experts import ExpertExchange, GlobalCapacity, install_experts
from leyden.parallel.ranks import StageRanks
from leyden.parallel.traffic import count_traffic

PLAN = Plan(dp_shard=2, tp=2, ep=2)

Case = tuple[tuple[int, ...], torch.Tensor, ModelConfig]
"""The tokens of every rank, the logits of all of them, and the rules."""


def _config(num_experts: int, top_k: int, factor: float | None, by: str) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "num_local_experts": num_experts,
            "num_experts_per_tok": top_k,
            "capacity_factor": factor,
            "token_drop": by,
            "num_hidden_layers": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
        }
    )


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for index in range(60):
        num_experts = (4, 8, 32)[index % 3]
        top_k = 1 + index % min(4, num_experts)
        tokens = tuple(torch.randint(0, 40, (4,), generator=generator).tolist())
        dtype = (torch.float32, torch.float64)[index // 2 % 2]
        logits = torch.randn(sum(tokens), num_experts, dtype=dtype, generator=generator)
        if index % 4 == 1:  # few different rows: nearly every probability has its like, on other ranks too
            logits = logits[torch.randint(0, 3, (len(logits),), generator=generator).clamp(max=max(0, len(logits) - 1))]
        elif index % 4 == 2:  # as peaked as to leave probabilities of 1 and 0
            logits = logits * 200
        elif index % 4 == 3:  # every token alike
            logits = logits[:1].expand(len(logits), -1).clone()
        factor = (0.3, 0.8, 1.0, 1.25, 5.0)[index % 5]
        cases += [(tokens, logits, _config(num_experts, top_k, factor, by)) for by in ("probability", "position")]
    cases.append(((0, 0, 0, 0), torch.randn(0, 4), _config(4, 2, 1.0, "probability")))
    cases.append(((0, 0, 0, 0), torch.randn(0, 4), _config(4, 2, 1.0, "position")))
    return cases


def _alone(logits: torch.Tensor, config: ModelConfig) -> Routing:
    routing = route(logits, config.num_experts_per_tok)
    assert config.capacity_factor is not None
    capacity = expert_capacity(
        len(logits), config.num_local_experts, config.num_experts_per_tok, config.capacity_factor
    )
    return drop_over_capacity(routing, capacity, config.token_drop)


def _kept(plan: Plan, cases: Sequence[Case]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What a rank keeps, the weights it then has, and their gradient for the logits."""
    mesh, found = mesh_of(plan), []
    stage = mesh.groups["stage"]
    assert stage is not None
    for tokens, logits, config in cases:
        own = logits.split(tokens)[mesh.index("stage")].clone().requires_grad_()
        routing = GlobalCapacity(stage)(route(own, config.num_experts_per_tok), config)
        assert routing.kept is not None
        (grad,) = torch.autograd.grad(routing.weights, own, torch.ones_like(routing.weights))
        found.append((routing.kept, routing.weights.detach(), grad))
    return found


def test_ranks_drop_what_one_process_would(ranks: Callable[..., list[Any]]) -> None:
    cases = _cases()
    by_rank = ranks(4, _kept, PLAN, cases)
    num_ties = 0
    for index, (tokens, logits, config) in enumerate(cases):
        kept, weights, grad = (torch.cat(parts) for parts in zip(*(rank[index] for rank in by_rank), strict=True))
        logits.requires_grad_()
        expected = _alone(logits, config)
        assert expected.kept is not None
        assert torch.equal(kept, expected.kept), f"case {index}: {tokens}, {config.token_drop}"
        assert torch.equal(weights, expected.weights)
        (expected_grad,) = torch.autograd.grad(expected.weights, logits, torch.ones_like(expected.weights))
        torch.testing.assert_close(grad, expected_grad)
        num_ties += _ties_at_the_threshold(expected)
    assert num_ties > 50, "these cases do not test ties"


def _ties_at_the_threshold(routing: Routing) -> int:
    """Experts that keep one of two equally probable tokens and drop the other."""
    assert routing.kept is not None
    chosen = routing.probabilities.gather(1, routing.experts)
    found = 0
    for expert in range(routing.probabilities.shape[1]):
        of_expert = routing.experts == expert
        kept, dropped = (set(chosen[of_expert & side].tolist()) for side in (routing.kept, ~routing.kept))
        found += bool(kept & dropped)
    return found


def test_nan_is_ranked_as_one_process_ranks_it(ranks: Callable[..., list[Any]]) -> None:
    """A token whose logits are NaN is dropped or kept alike, and no rank waits for another."""
    logits = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    logits[[3, 17]] = torch.nan
    case = ((6, 6, 6, 6), logits, _config(4, 2, 0.5, "probability"))
    found = torch.cat([rank[0][0] for rank in ranks(4, _kept, PLAN, [case])])
    expected = _alone(logits, case[2]).kept
    assert expected is not None
    assert torch.equal(found, expected)


def _bytes(plan: Plan, cases: Sequence[Case]) -> list[dict[tuple[str, str], int]]:
    mesh, found = mesh_of(plan), []
    for case in cases:
        with count_traffic(mesh) as traffic:
            _kept(plan, [case])
        found.append(traffic.by_operation())
    return found


def test_what_is_exchanged_does_not_grow_with_the_tokens(ranks: Callable[..., list[Any]]) -> None:
    cases: list[Case] = []
    for scale in (1, 50):
        tokens = tuple(scale * n for n in (3, 5, 2, 4))
        for by in ("probability", "position"):
            cases.append((tokens, torch.randn(sum(tokens), 8), _config(8, 2, 1.0, by)))
    for found in ranks(4, _bytes, PLAN, cases):
        by_probability = {("stage", "all_reduce"): 4 * 8 * 256 * 4, ("stage", "all_gather"): 8 * 8}
        assert found == [by_probability, {("stage", "all_gather"): 8 * 8}] * 2


def _capacities(plan: Plan) -> list[tuple[int, int, float]]:
    """Where the capacity computed on the device is not :func:`leyden.ops.expert_capacity`."""
    from leyden.parallel.experts.router import _capacity

    wrong = []
    for factor in (0.1, 0.3, 1.0, 1.1, 1.25, 4 / 3, 1.5, 7.77):
        for num_experts, top_k in ((32, 2), (7, 3), (10, 1)):
            config = _config(num_experts, top_k, factor, "position")
            for tokens in (1, 2, 3, 10, 70, 700, 8191, 8192, 1_000_003):
                expected = expert_capacity(tokens, num_experts, top_k, factor)
                if int(_capacity(torch.tensor(tokens * top_k), config)) != expected:
                    wrong.append((tokens, num_experts, factor))
    return wrong


def test_capacity_on_the_device_is_that_of_the_op() -> None:
    assert _capacities(PLAN) == []


def _losses(plan: Plan, logits: torch.Tensor, config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A rank's share of the dropped assignments and of the loads, and what it would drop alone."""
    mesh = mesh_of(plan)
    stage = mesh.groups["stage"]
    assert stage is not None
    own = logits.chunk(4)[mesh.index("stage")]
    routing = route(own, config.num_experts_per_tok)
    together = router_losses(config, [GlobalCapacity(stage)(routing, config)], StageRanks(mesh))
    local = router_losses(config, [alone.drop(routing, config)], StageRanks(mesh))
    return together.dropped, together.load, local.dropped


def test_drop_rates_are_those_of_all_tokens(ranks: Callable[..., list[Any]]) -> None:
    """Shares add up to what one process reports; ranks that like different experts drop more by themselves."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4 * 64, 8, generator=generator) + torch.randn(4, 8, generator=generator).repeat_interleave(
        64, 0
    )
    config = _config(8, 2, 1.0, "probability")
    dropped, load, local = (sum(parts) for parts in zip(*ranks(4, _losses, PLAN, logits, config), strict=True))
    expected = router_losses(config, [_alone(logits, config)])
    torch.testing.assert_close(dropped, expected.dropped)
    torch.testing.assert_close(load, expected.load)
    counts = [torch.bincount(route(own, 2).experts.flatten(), minlength=8) for own in logits.chunk(4)]
    by_hand = sum(int((count - expert_capacity(64, 8, 2, 1.0)).clamp(min=0).sum()) for count in counts) / (256 * 2)
    assert float(local) == pytest.approx(by_hand)
    assert float(local) > 1.2 * float(dropped)


def _installed(plan: Plan) -> dict[str, list[str]]:
    """What installing changes, by the sizes of axes and the rule of capacity."""
    mesh, found = mesh_of(plan), {}
    for capacity in ("global", "local"):
        module = nn.ModuleList([MixtureOfExperts(_config(4, 2, 1.0, "position")), nn.Linear(2, 2)])
        settings = ParallelConfig.model_validate({"capacity": capacity})
        install_experts(module, replace(mesh, plan=replace(plan, settings=settings)))
        experts = module[0]
        assert isinstance(experts, MixtureOfExperts)
        assert isinstance(experts.drop, GlobalCapacity) or experts.drop is alone.drop
        assert isinstance(experts.experts.compute, ExpertExchange) or experts.experts.compute is alone.compute
        found[capacity] = [type(experts.experts.compute).__name__, type(experts.drop).__name__]
    return found


def test_only_what_a_plan_needs_is_installed(ranks: Callable[..., list[Any]]) -> None:
    expected = {"global": ["ExpertExchange", "GlobalCapacity"], "local": ["ExpertExchange", "function"]}
    assert ranks(2, _installed, Plan(dp_shard=2, ep=2)) == [expected] * 2
    expected = {"global": ["function", "GlobalCapacity"], "local": ["function", "function"]}
    assert ranks(2, _installed, Plan(dp_shard=2)) == [expected] * 2
    expected = {"global": ["function", "function"], "local": ["function", "function"]}
    assert ranks(2, _installed, Plan(pp=2)) == [expected] * 2
