"""The objective of policy gradients is plain arithmetic on whole logits, one token at a time, in float64."""

import math
from typing import Any

import pytest
import torch
from one_process import assert_close
from test_exactness import TWO_LAYERS, build
from two_objectives import completions, segments

from leyden.align.policy import PRESETS, Algorithm, PolicyGradient
from leyden.align.policy.objective import DRAWN
from leyden.data import Batch


def by_hand(
    model: Any, other: Any, batch: Batch, how: Algorithm, temperature: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss, the weight and the sums of metrics; ``other`` is the reference of a whole divergence."""
    loss: Any = 0.0
    sums = dict.fromkeys(("weight", "ratio", "off_policy", "clipped", "discarded", "entropy", "kl"), 0.0)
    low, high = 1 - how.clip_low, 1 + how.clip_high if how.clip_high else math.inf
    documents = [n for n, group in enumerate(batch.groups.tolist()) if group >= 0]  # pyright: ignore[reportOptionalMemberAccess]
    for place, document in zip(segments(batch), documents, strict=True):
        labels = batch.labels[0, place]
        learned = labels >= 0
        logits = model.lm_head(model.features(batch.tokens[:, place]).hidden)[0] / temperature
        log_p = logits.log_softmax(-1)[learned]
        values = log_p.gather(1, labels[learned][:, None])[:, 0]
        theirs = other.lm_head(other.features(batch.tokens[:, place]).hidden)[0] / temperature
        whole = (log_p.exp() * (log_p - theirs.log_softmax(-1)[learned].detach())).sum(-1)
        given = {name: x[0, place][learned].tolist() for name, x in batch.per_token.items()}
        given_advantage, weight, count = (
            float(batch.per_document[name][document]) for name in ("advantage", "loss_weight", "count")
        )
        of_tokens = how.baseline == "critic"
        advantages = given["advantage"] if of_tokens else [given_advantage] * len(values)
        changes = [value - old for value, old in zip(values, given["drawn"], strict=True)]
        mean = sum(changes) / len(changes)
        of_each = zip(values, changes, given["reference"], advantages, whole, strict=True)
        for value, change, reference, advantage, apart in of_each:
            ratio = (mean if how.ratio == "sequence" else change).exp()
            bounded = min(max(ratio.item(), low), high)
            dropped = how.drop_above > 0 and advantage < 0 and ratio.item() > how.drop_above
            if how.surrogate == "cispo":
                clipped, one = bounded != ratio.item(), -bounded * advantage * value
            else:
                clipped = bounded * advantage < ratio.item() * advantage
                one = torch.tensor(-bounded * advantage, dtype=torch.float64) if clipped else -ratio * advantage
            loss = loss + weight * (0.0 if dropped else one)
            away = value.item() - reference
            if how.kl_weight and how.kl_in == "loss":
                term = (math.exp(value.item()) - math.exp(reference)) * value
                if how.kl == "k3":
                    term = (reference - value).exp() - 1 + (value - reference)
                if how.kl == "reverse":
                    term = apart
                loss = loss + how.kl_weight * weight * term
            sums["weight"] += count
            sums["ratio"] += count * ratio.item()
            sums["off_policy"] += count * (ratio.item() != 1)
            sums["clipped"] += count * (clipped and not dropped)
            sums["discarded"] += count * dropped
            sums["entropy"] -= count * value.item()
            sums["kl"] += count * (apart.item() if how.kl == "reverse" else math.exp(-away) - 1 + away)
    return loss, sums


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_plain_arithmetic_on_whole_logits(name: str) -> None:
    how, temperature = Algorithm(preset=name), 0.8
    model, twin, other = build({}), build({}), build(TWO_LAYERS)
    objective = PolicyGradient(how, temperature, reference=lambda: other)
    batch = completions(seed=2, seq_len=37, sequences=3).batch(0)
    found = objective.sums(model, model.features(batch.tokens, cu_seqlens=batch.cu_seqlens), batch)
    loss, sums = by_hand(twin, other, batch, how, temperature)
    assert_close(found.loss, loss, "the loss")
    assert found.weight.item() == pytest.approx(sums["weight"], rel=1e-10)
    assert set(found.metrics) == set(objective.metrics)
    for metric, value in found.metrics.items():
        assert value.item() == pytest.approx(sums[metric], rel=1e-9), metric
    if name in ("minimax", "grpo", "dapo", "cispo"):
        assert 0.05 < found.metrics["clipped"] / found.weight < 0.9, "the rows have both cases"
    assert (found.metrics["discarded"] > 0) == (name == "minimax")
    found.loss.backward()
    loss.backward()
    for parameter, same in zip(model.named_parameters(), twin.parameters(), strict=True):
        if same.grad is not None:
            assert_close(parameter[1].grad, same.grad, f"the gradient of {parameter[0]}")


def test_nothing_is_learned_of_padding_and_prompts() -> None:
    objective, batch = PolicyGradient(Algorithm()), completions(seed=2, seq_len=37, sequences=3).batch(0)
    model = build({})
    features = model.features(batch.tokens, cu_seqlens=batch.cu_seqlens)
    whole = objective.sums(model, features, batch)
    wild = torch.where(batch.labels < 0, torch.full_like(batch.per_token[DRAWN], -9e9), batch.per_token[DRAWN])
    same = objective.sums(
        model, features, Batch(batch.tokens, batch.labels, batch.cu_seqlens, {**batch.per_token, DRAWN: wild},
                               batch.per_document, batch.groups)
    )  # fmt: skip
    assert torch.equal(whole.loss, same.loss) and torch.equal(whole.metrics["ratio"], same.metrics["ratio"])
