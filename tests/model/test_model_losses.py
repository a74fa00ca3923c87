"""A model's losses of single tokens, and their weighted sum, are those of its logits, as are their gradients."""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from leyden.model import HybridLM
from leyden.ops import IGNORE_INDEX


def test_losses_are_those_of_the_logits(random_model: Callable[..., HybridLM]) -> None:
    model = random_model(torch.float64, z_loss_coef=0.1)
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
