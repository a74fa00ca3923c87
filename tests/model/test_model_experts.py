"""Balance losses by their formulas, and capacity, which drops tokens in training alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leyden.model import Documents, HybridLM, ModelConfig, Ranks, router_losses
from leyden.model.experts import MixtureOfExperts
from leyden.ops import Groups, Routing, route, route_in_groups

ModelMaker = Callable[..., HybridLM]

E, K, N, LAYERS = 5, 2, 33, 3


def random_logits() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, E, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(LAYERS)]


def config(**changes: object) -> ModelConfig:
    shape = {"num_hidden_layers": LAYERS, "num_local_experts": E, "num_experts_per_tok": K}
    return ModelConfig.parse({**shape, **changes}, "test")


def shares(routing: Routing) -> torch.Tensor:
    """[E], how often each expert was chosen, per token."""
    return torch.stack([(routing.experts == e).sum() for e in range(E)]).double() / N


def test_gshard_is_the_papers_and_its_gradient_flows_through_the_probabilities() -> None:
    logits = random_logits()
    routings = [route(x, K) for x in logits]
    losses = router_losses(config(router_aux_loss_coef=0.3), routings)
    # (1/E) sum_i f_i m_i a layer, both scaled so that an even load gives 1
    f = [E / K * shares(r) for r in routings]
    expected = sum((f_ * E * r.probabilities.mean(0)).mean() for f_, r in zip(f, routings, strict=True))
    torch.testing.assert_close(losses.loss, 0.3 * expected)
    losses.loss.backward()
    for x, r, f_ in zip(logits, routings, f, strict=True):
        p = r.probabilities.detach()
        torch.testing.assert_close(x.grad, 0.3 / N * p * (f_ - (p * f_).sum(1, keepdim=True)))


def test_switch_is_that_of_the_released_code() -> None:
    modeling = pytest.importorskip("transformers.models.minimax.modeling_minimax")
    logits = random_logits()
    losses = router_losses(config(router_aux_loss_coef=1.0, router_aux_loss="switch"), [route(x, K) for x in logits])
    expected = modeling.load_balancing_loss_func(tuple(x.float() for x in logits), E, K)
    torch.testing.assert_close(losses.loss.float(), expected)
    ours = torch.autograd.grad(losses.loss, logits)
    theirs = torch.autograd.grad(expected, logits)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


def test_an_even_load_costs_one_a_layer_or_k() -> None:
    logits = torch.eye(E, dtype=torch.float64).repeat(K, 1) * 1e-9 + torch.eye(E).roll(1, 1).repeat(K, 1) * 1e-9
    even = [route(logits.double(), K)] * LAYERS
    assert shares(even[0]).unique().numel() == 1
    gshard = router_losses(config(router_aux_loss_coef=1.0), even)
    switch = router_losses(config(router_aux_loss_coef=1.0, router_aux_loss="switch"), even)
    assert gshard.loss.item() == pytest.approx(LAYERS)
    assert switch.loss.item() == pytest.approx(K)
    assert torch.allclose(gshard.load, torch.full((LAYERS, E), 1 / E))
    assert gshard.dropped == 0


def test_the_z_loss_is_a_mean_of_squares() -> None:
    logits = random_logits()
    losses = router_losses(config(router_aux_loss_coef=0.0, router_z_loss_coef=0.5), [route(x, K) for x in logits])
    expected = 0.5 * torch.stack([x.exp().sum(1).log() ** 2 for x in logits]).mean()
    torch.testing.assert_close(losses.loss, expected)
    given, wanted = torch.autograd.grad(losses.loss, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("by", ["probability", "position"])
def test_capacity_drops_in_training_alone(random_model: ModelMaker, by: str) -> None:
    model = random_model(capacity_factor=0.5, token_drop=by)
    free, tokens = random_model(), torch.arange(60).view(2, 30)
    with torch.no_grad():
        assert torch.equal(model(tokens), free(tokens))
        assert all(r.kept is None for r in model.features(tokens).routings)
        model.train()
        routings = model.features(tokens).routings
        assert not torch.equal(model(tokens), free(tokens))
    capacity = 15  # half of 60 tokens times 2 choices over 4 experts
    for routing in routings:
        assert routing.kept is not None
        for expert in range(4):
            mine = routing.experts == expert
            kept = mine & routing.kept
            assert kept.sum() == min(capacity, mine.sum())
            dropped = mine & ~routing.kept
            if dropped.any():
                rank = -routing.probabilities[:, expert] if by == "probability" else torch.arange(60.0)
                assert rank[kept.any(1)].max() <= rank[dropped.any(1)].min()
        assert (routing.weights[~routing.kept] == 0).all()
    losses = router_losses(model.config, routings)
    assert losses.dropped == pytest.approx(1 - sum(int(r.kept.sum()) for r in routings) / (3 * 120))
    assert torch.allclose(losses.load.sum(1), torch.ones(3))


def test_an_ample_capacity_drops_nothing(random_model: ModelMaker) -> None:
    model, tokens = random_model(capacity_factor=4.0).train(), torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), random_model()(tokens))
        assert router_losses(model.config, model.features(tokens).routings).dropped == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_the_sigmoid_router_is_that_of_deepseek_v3_in_transformers(normalize: bool) -> None:
    theirs = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    from transformers import DeepseekV3Config

    shape = DeepseekV3Config(
        hidden_size=24, n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, n_shared_experts=1,
        moe_intermediate_size=12, intermediate_size=12, norm_topk_prob=normalize, routed_scaling_factor=2.5,
    )  # fmt: skip
    moe: Any = theirs.DeepseekV3MoE(shape).eval()
    ours = ModelConfig.parse(
        {
            "router": "sigmoid_groups", "hidden_size": 24, "num_local_experts": 16, "num_experts_per_tok": 4,
            "n_group": 4, "topk_group": 2, "norm_topk_prob": normalize, "routed_scaling_factor": 2.5,
            "intermediate_size": 12, "shared_intermediate_size": 12, "shared_expert_gate": False,
        },
        "test",
    )  # fmt: skip
    mixture: Any = MixtureOfExperts(ours).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        mixture.gate.expert_bias.abs_()  # transformers masks with 0, and a choice below it is not the paper's
        moe.gate.weight.copy_(mixture.gate.weight)
        moe.gate.e_score_correction_bias.copy_(mixture.gate.expert_bias)
        moe.experts.gate_up_proj.copy_(mixture.experts.gate_up_proj)
        moe.experts.down_proj.copy_(mixture.experts.down_proj)
        for name in ("gate_proj", "up_proj", "down_proj"):
            moe.shared_experts.get_submodule(name).weight.copy_(mixture.shared.mlp.get_submodule(name).weight)
        x = torch.randn(2, 33, 24, generator=generator)
        out, routing = mixture(x)
        torch.testing.assert_close(out, moe(x), rtol=1e-5, atol=1e-5)
    assert len({tuple(sorted(row)) for row in (routing.experts // 4).tolist()}) > 3  # groups differ between tokens


def sequence_loss(probabilities: torch.Tensor, top_k: int) -> torch.Tensor:
    """DeepSeek-V3's equations 17 to 20 of one document, term by term; without the coefficient."""
    length, num_experts = probabilities.shape
    f, P = [0.0] * num_experts, [probabilities.new_zeros(())] * num_experts
    for row in probabilities:
        for i in sorted(range(num_experts), key=lambda i: -float(row[i].detach()))[:top_k]:
            f[i] += num_experts / (top_k * length)
        P = [one + share / length for one, share in zip(P, row, strict=True)]
    return torch.stack([share * one for share, one in zip(f, P, strict=True)]).sum()


@pytest.mark.parametrize("router", ["softmax_topk", "sigmoid_groups"])
def test_the_sequence_wise_loss_is_deepseek_v3s_of_each_document(router: str) -> None:
    logits, lengths = random_logits(), [7, 1, 25]
    if router == "softmax_topk":
        routings = [route(x, K) for x in logits]
    else:  # neither the bias nor groups have a part in the loss
        bias = torch.linspace(-1, 1, E, dtype=torch.float64)
        routings = [route_in_groups(x, bias, K, scale=2.5) for x in logits]
    documents = Documents.of(torch.zeros(1, N), torch.tensor([0, 7, 8, 33]), Ranks())
    losses = router_losses(config(router_aux_loss="sequence", router_aux_loss_coef=0.3), routings, None, documents)
    expected = torch.zeros((), dtype=torch.float64)
    for x in logits:
        scores = x.sigmoid() if router == "sigmoid_groups" else x.exp()
        shares = scores / scores.sum(1, keepdim=True)
        for part in shares.split(lengths):
            expected = expected + 0.3 * len(part) / N * sequence_loss(part, K)
    torch.testing.assert_close(losses.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(losses.loss, logits), torch.autograd.grad(expected, logits))


def test_the_sequence_wise_loss_of_packed_documents_is_that_of_the_same_alone(random_model: ModelMaker) -> None:
    model = random_model(torch.float64, router_aux_loss="sequence", router="sigmoid_groups", router_aux_loss_coef=0.1)
    tokens, lengths = torch.arange(60)[None], [40, 1, 19]
    with torch.no_grad():
        packed = model.router_losses(model.features(tokens, cu_seqlens=torch.tensor([0, 40, 41, 60]))).loss
        alone = [model.router_losses(model.features(part)).loss for part in tokens.split(lengths, dim=1)]
        rows = model.router_losses(model.features(tokens.view(2, 30))).loss
        halves = [model.router_losses(model.features(row[None])).loss for row in tokens.view(2, 30)]
    torch.testing.assert_close(packed, sum(n * one for n, one in zip(lengths, alone, strict=True)) / 60)
    torch.testing.assert_close(rows, (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("groups", [Groups(2, 1), Groups(2, 2)])
def test_the_loss_over_groups_is_deepseek_v2s_over_devices(groups: Groups) -> None:
    """Device by device and token by token, as its equations say it; the choice has no gradient."""
    num_experts, size = 6, 3
    logits = [torch.cat([x, x[:, :1].roll(1, 0)], dim=1) for x in random_logits()]
    routings = [route_in_groups(x, torch.zeros(num_experts, dtype=torch.float64), K, groups) for x in logits]
    shape = config(
        num_local_experts=num_experts,
        router="sigmoid_groups",
        n_group=2,
        topk_group=groups.chosen,
        router_aux_loss_coef=0.0,
        router_group_loss_coef=0.3,
    )
    expected = torch.zeros((), dtype=torch.float64)
    for x, routing in zip(logits, routings, strict=True):
        scores = x.sigmoid() / x.sigmoid().sum(1, keepdim=True)
        for device in range(2):
            experts = range(device * size, (device + 1) * size)
            f = [sum(int(i in row) for row in routing.experts.tolist()) * num_experts / (K * N) for i in experts]
            P = sum(scores[:, i].sum() / N for i in experts)
            expected = expected + 0.3 * sum(f) / size * P
    loss = router_losses(shape, routings).loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize(("chosen", "num_devices"), [(1, 4), (2, 4), (3, 8)])
@pytest.mark.parametrize("score", ["max", "top2_sum"])
def test_a_token_goes_to_so_many_devices_at_most(chosen: int, num_devices: int, score: Any) -> None:
    """DeepSeek-V2, section 2.2.2: the devices of a token are those with the highest scores, whatever else there is."""
    num_experts, top_k = 4 * num_devices, 3
    logits = torch.randn(200, num_experts, dtype=torch.float64, generator=torch.Generator().manual_seed(chosen))
    bias = torch.linspace(-0.2, 0.2, num_experts, dtype=torch.float64)
    experts = route_in_groups(logits, bias, top_k, Groups(num_devices, chosen, score)).experts
    biased = (logits.sigmoid() + bias).unflatten(1, (num_devices, 4))
    best = biased.amax(-1) if score == "max" else biased.sort(-1).values[..., -2:].sum(-1)
    allowed = best.argsort(-1, descending=True)[:, :chosen]
    for token in range(200):
        devices = {expert // 4 for expert in experts[token].tolist()}
        assert devices <= set(allowed[token].tolist())
        within = biased[token].clone()
        within[[d for d in range(num_devices) if d not in allowed[token]]] = -torch.inf
        assert experts[token].tolist() == within.flatten().argsort(descending=True)[:top_k].tolist()


def test_an_even_document_costs_one_a_layer() -> None:
    logits = torch.eye(E, dtype=torch.float64) * 1e-9 + torch.eye(E).roll(1, 1) * 1e-9
    documents = Documents.of(torch.zeros(1, 2 * E), torch.tensor([0, E, 2 * E]), Ranks())
    settings = config(router_aux_loss="sequence", router_aux_loss_coef=1.0)
    assert router_losses(settings, [route(logits.repeat(2, 1), K)] * LAYERS, None, documents).loss == pytest.approx(
        LAYERS
    )
    with pytest.raises(RuntimeError, match="documents of the tokens; none given"):
        router_losses(settings, [route(logits, K)] * LAYERS)


def test_the_load_stands_where_the_gradient_of_a_bias_would(random_model: ModelMaker) -> None:
    """Whatever the loss is multiplied by, whatever capacity drops, and not of a pass without a backward."""
    model = random_model(router="sigmoid_groups", capacity_factor=0.5).train()
    tokens = torch.arange(60).view(2, 30)
    with torch.no_grad():
        model(tokens)
    for factor in (1.0, -1e-3):
        features = model.features(tokens)
        (factor * features.hidden.sum()).backward()
    for layer, routing in zip(model.layers, features.routings, strict=True):
        load = torch.stack([(routing.experts == e).sum() for e in range(4)])
        assert load.sum() == 120
        assert layer.mlp.gate.expert_bias.grad.tolist() == (2 * load).tolist()
