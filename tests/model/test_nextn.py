"""Modules for multi-token prediction equal their published formula, written out in float64, in values and gradients."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig, count_model, quantize
from leyden.model.forward_context import lay_out
from leyden.model.nextn import NextTokenModule
from leyden.parallel.objective import sums_of_row
from leyden.train import Pretrain

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "layer_types": ("linear_attention", "full_attention"),
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rotary_dim": 8,
    "intermediate_size": 24,
    "num_local_experts": 4,
    "num_nextn_predict_layers": 2,
}
WEIGHT = 0.3


@dataclass(frozen=True)
class Row:
    """A packed row, as an objective reads it."""

    tokens: torch.Tensor
    labels: torch.Tensor
    cu_seqlens: torch.Tensor


def model_of(**changes: Any) -> HybridLM:
    model = HybridLM(ModelConfig(**{**SMALL, **changes}), seed=3).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # norms of ones would hide one that is missing or in the wrong place
                weight += torch.linspace(-0.3, 0.4, len(weight), dtype=torch.float64) * (1 + len(name) % 3)
    return model


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def published(model: HybridLM, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Of one text, for each module the logits [T - k, V] of the positions i that have a token t_{i+k}, if any."""
    eps, found = model.config.rms_norm_eps, []
    hidden = model.features(tokens[None]).hidden[0]
    for k, module in enumerate(list(model.mtp)[: len(tokens) - 1], start=1):
        assert isinstance(module, NextTokenModule)
        hidden = hidden[: len(tokens) - k]
        embedded = model.embed_tokens.weight[tokens[k:]]
        both = torch.cat([norm(embedded, module.enorm.weight, eps), norm(hidden, module.hnorm.weight, eps)], dim=-1)
        x = both @ module.eh_proj.weight.T
        hidden = norm(_layer(model, module, x), module.final_layernorm.weight, eps)
        found.append(hidden @ model.lm_head.weight.T)
    return found


def _layer(model: HybridLM, module: NextTokenModule, x: torch.Tensor) -> torch.Tensor:
    """x [T, D] of one text through the module's layer, which test_model_reference.py holds to its formula."""
    return module.block(x[None], lay_out(model.config, len(x), 0, None, x.device), None, None)[0][0]


def row_of(lengths: list[int], seed: int = 0) -> Row:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 61, (1, sum(lengths)), generator=generator)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    labels = tokens.roll(-1, 1)
    labels[0, bounds[1:].long() - 1] = -100
    labels[0, 2] = -100  # a label that is asked of nobody
    return Row(tokens, labels, bounds)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nextn_layer_type": "linear_attention", "nextn_mlp_type": "dense", "num_nextn_predict_layers": 1},
        {"nextn_layer_type": "hgrn2_attention", "tie_word_embeddings": True, "postnorm": False},
    ],
    ids=["as the last layer", "lightning, dense", "HGRN2, tied"],
)
def test_packed_documents_have_the_losses_of_each_alone(changes: dict[str, Any]) -> None:
    """Loss and all gradients against the formula, text by text; lengths of 1 and 2 have no token to be foretold."""
    lengths = [7, 1, 12, 2, 5]
    no_balance = {"router_aux_loss_coef": 0.0, "z_loss_coef": 0.01}  # a mean over a row is not one over texts
    model, plain = model_of(**changes, **no_balance), model_of(**changes, **no_balance)
    row = row_of(lengths)
    sums = sums_of_row(Pretrain(), model, row, mtp_weight=WEIGHT)
    sums.loss.backward()

    total, parts, counts = torch.zeros((), dtype=torch.float64), [0.0] * len(plain.mtp), [0] * len(plain.mtp)
    depth = len(plain.mtp)
    for start, stop in zip(row.cu_seqlens, row.cu_seqlens[1:], strict=False):
        tokens, labels = row.tokens[0, start:stop], row.labels[0, start:stop]
        logits = plain(tokens[None])[0]
        nll = cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        total = total + nll + 0.01 * (logits.logsumexp(-1).square() * (labels >= 0)).sum()
        for k, ahead in enumerate(published(plain, tokens), start=1):
            nll = cross_entropy(ahead, labels[k:], ignore_index=-100, reduction="sum")
            total = total + WEIGHT / depth * nll
            parts[k - 1] += float(nll.detach())
            counts[k - 1] += int((labels[k:] >= 0).sum())
    total.backward()
    torch.testing.assert_close(sums.loss, total, rtol=1e-11, atol=0)
    for k, (nats, count) in enumerate(zip(parts, counts, strict=True), start=1):
        torch.testing.assert_close(float(sums.metrics[f"mtp_loss_{k}"]), nats, rtol=1e-11, atol=0)
        assert int(sums.metrics[f"mtp_labels_{k}"]) == count
    gradients = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        torch.testing.assert_close(weight.grad, gradients[name].grad, rtol=1e-9, atol=1e-12, msg=name)


def test_the_model_itself_is_what_it_was_without() -> None:
    """Initial weights, logits and the loss that is logged."""
    model, without = model_of(), model_of(num_nextn_predict_layers=0)
    weights = without.state_dict()
    for name, weight in model.state_dict().items():
        assert name.startswith("mtp.") or torch.equal(weight, weights[name])
    row = row_of([9, 4])
    ahead, alone = (sums_of_row(Pretrain(), one, row, mtp_weight=WEIGHT) for one in (model, without))
    assert torch.equal(ahead.metrics["loss"], alone.metrics["loss"])
    assert torch.equal(ahead.weight, alone.weight)
    silent = sums_of_row(Pretrain(), model, row)
    assert torch.equal(silent.loss, alone.loss)
    assert not any(name.startswith("mtp") for name in silent.metrics)
    assert ahead.metrics["expert_load"].shape == (2 + 2, 4)


def test_counts_are_those_of_the_model() -> None:
    for changes in ({}, {"nextn_mlp_type": "dense", "tie_word_embeddings": True, "score_head": True}):
        model = model_of(**changes)
        counted = count_model(model.config)
        modules = {name: weight.numel() for name, weight in model.named_parameters() if name.startswith("mtp.")}
        assert counted.nextn is not None
        assert counted.parameters == sum(weight.numel() for weight in model.parameters())
        assert counted.nextn.parameters == sum(modules.values())
        assert counted.weight_bytes(torch.bfloat16) == sum(
            p.nbytes for p in HybridLM(model.config).bfloat16().parameters()
        )
        plain = count_model(model.config.model_copy(update={"num_nextn_predict_layers": 0}))
        assert counted.forward_flops_per_token(100) == plain.forward_flops_per_token(100)
        heads = 2 * 2 * counted.output_parameters
        more = counted.training_flops_per_token(100) - plain.training_flops_per_token(100)
        assert more == pytest.approx(3 * (counted.nextn.forward_flops_per_token(100)))
        assert more > 3 * (heads + 2 * 2 * 2 * 32 * 32)


def test_eight_bits_are_near() -> None:
    model, row = model_of().float(), row_of([9, 4])
    exact = model.features(row.tokens, cu_seqlens=row.cu_seqlens, ahead=True).ahead
    near = quantize(model).features(row.tokens, cu_seqlens=row.cu_seqlens, ahead=True).ahead
    for one, other in zip(exact, near, strict=True):
        assert (one - other).norm() < 0.05 * one.norm()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_nextn_predict_layers": 0, "nextn_layer_type": "full_attention"}, "of which there are none"),
        ({"nextn_layer_type": "sliding_attention"}, "sliding_window is missing"),
        ({"nextn_mlp_type": "experts", "num_local_experts": 0}, "num_local_experts is 0"),
        ({"num_nextn_predict_layers": 17}, "num_nextn_predict_layers"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelConfig.parse({**SMALL, **changes}, "model")
