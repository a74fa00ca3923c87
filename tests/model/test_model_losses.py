"""A model's losses of single tokens, and their weighted sum, are those of its logits, as are their gradients."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy

from leyden.model import HybridLM, quantize
from leyden.ops import IGNORE_INDEX


@pytest.mark.parametrize("softcap", [None, 1.3])
def test_losses_are_those_of_the_logits(random_model: Callable[..., HybridLM], softcap: float | None) -> None:
    model = random_model(torch.float64, z_loss_coef=0.1, final_logit_softcapping=softcap)
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(101, (2, 2, 13), generator=generator)
    labels[:, ::4] = IGNORE_INDEX
    upstream = torch.randn(2, 2, 13, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, 13, dtype=torch.float64, generator=generator)

    logits = model(tokens)
    nll = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(2, 13)
    log_z = logits.logsumexp(-1).where(labels != IGNORE_INDEX, 0)
    loss = (weights * (nll + 0.1 * log_z.square())).sum()
    expected = torch.autograd.grad((torch.stack([nll, log_z]) * upstream).sum() + loss, list(model.parameters()))

    hidden = model.features(tokens).hidden
    found = model.token_nll(hidden, labels)
    found_loss, found_nll = model.cross_entropy(hidden, labels, weights)
    torch.testing.assert_close(torch.stack(found), torch.stack([nll, log_z]))
    torch.testing.assert_close(torch.stack([found_loss, found_nll]), torch.stack([loss, (weights * nll).sum()]))
    gradients = torch.autograd.grad((torch.stack(found) * upstream).sum() + found_loss, list(model.parameters()))
    for gradient, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.3])
def test_losses_at_a_temperature_are_those_of_divided_logits(
    random_model: Callable[..., HybridLM], softcap: float | None, head: bool
) -> None:
    """Of 8-bit weights too."""
    model = random_model(torch.float32, final_logit_softcapping=softcap)
    model = quantize(model, head=True) if head else model
    tokens = torch.randint(101, (2, 13), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        nll, log_z = model.token_nll(model.features(tokens).hidden, tokens.flip(0), 0.7)
        logits = model(tokens) / 0.7
    torch.testing.assert_close(log_z, logits.logsumexp(-1))
    torch.testing.assert_close(nll, cross_entropy(logits.mT, tokens.flip(0), reduction="none"))
    assert softcap is None or logits.abs().max() <= 1.3 / 0.7
