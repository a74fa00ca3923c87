"""Losses over pairs: each its formula in plain arithmetic, and TRL's where TRL has it."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.preference import LOSSES, PreferenceSettings
from leyden.core.errors import UserError


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(name: str, z: float) -> float:
    """With beta 0.3, gamma 0.7 and label smoothing 0.2."""
    return {
        "dpo": -math.log(sigma(0.3 * z)),
        "dpo_norm": -math.log(sigma(0.3 * z)),
        "simpo": -math.log(sigma(0.3 * z - 0.7)),
        "ipo": (z - 1 / 0.6) ** 2,
        "cdpo": -0.8 * math.log(sigma(0.3 * z)) - 0.2 * math.log(sigma(-0.3 * z)),
    }[name]


GIVEN = {"beta": 0.3, "gamma": 0.7, "label_smoothing": 0.2}


def settings_of(name: str) -> PreferenceSettings:
    return PreferenceSettings(loss=name, **{key: GIVEN[key] for key in LOSSES[name].defaults})


@pytest.mark.parametrize("name", LOSSES)
@given(margins=st.lists(st.floats(-40, 40), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_a_loss_is_its_formula_and_so_is_its_gradient(name, margins):
    asked = settings_of(name)
    z = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    loss = asked.of_pairs.of_margin(z, **asked.settings_of_loss)
    torch.testing.assert_close(loss, torch.tensor([by_hand(name, m) for m in margins]).double(), rtol=1e-6, atol=1e-6)
    loss.sum().backward()
    step = 1e-5
    slopes = [(by_hand(name, m + step) - by_hand(name, m - step)) / (2 * step) for m in margins]
    torch.testing.assert_close(z.grad, torch.tensor(slopes).double(), rtol=1e-4, atol=1e-5)


def test_a_margin_beyond_all_bounds_has_a_finite_loss_and_gradient():
    for name in LOSSES:
        asked = settings_of(name)
        z = torch.tensor([-1e6, 1e6], requires_grad=True)
        loss = asked.of_pairs.of_margin(z, **asked.settings_of_loss)
        loss.sum().backward()
        assert loss.isfinite().all() and z.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "dop"}, "did you mean 'dpo'"),
        ({"loss": "dpo", "gamma": 1.0}, "gamma is for loss = 'simpo', and loss is 'dpo'"),
        ({"label_smoothing": 0.1}, "label_smoothing is for loss = 'cdpo', and loss is 'dpo'"),
        ({"loss": "cdpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_a_loss_does_not_take_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        PreferenceSettings.parse(given, "test")


def test_what_is_not_said_is_the_default_of_the_loss():
    assert PreferenceSettings().loss_name == "dpo" and PreferenceSettings().settings_of_loss == {"beta": 0.1}
    assert PreferenceSettings(loss="simpo", gamma=0.4).settings_of_loss == {"beta": 2.0, "gamma": 0.4}


# What TRL calls each, and the trainer that has it; its DPO trainer has no smoothed loss, and that of CPO no reference.
IN_TRL = {"dpo": "sigmoid", "dpo_norm": "sigmoid_norm", "ipo": "ipo"}


@pytest.fixture
def pairs() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    mask = torch.zeros(8, 12, dtype=torch.long)
    for row, length in enumerate([3, 9, 1, 5, 4, 2, 7, 8]):
        mask[row, 3 : 3 + length] = 1
    per_token = -torch.rand(8, 11, dtype=torch.float64, generator=drawn) * 4 * mask[:, 1:]
    reference = -torch.rand(8, dtype=torch.float64, generator=drawn) * 20
    return {"mask": mask, "per_token": per_token, "reference": reference}


def ours(name: str, pairs: dict[str, torch.Tensor]) -> torch.Tensor:
    asked = settings_of(name)
    scores = pairs["per_token"].sum(1) - (pairs["reference"] if asked.of_pairs.needs_reference else 0)
    if asked.of_pairs.by_length:
        scores = scores / pairs["mask"].sum(1)
    chosen, rejected = scores.chunk(2)
    return asked.of_pairs.of_margin(chosen - rejected, **asked.settings_of_loss)


@pytest.mark.parametrize("name", IN_TRL)
def test_the_loss_of_trl_is_the_same(name, pairs):
    trainer = pytest.importorskip("trl").DPOTrainer
    shape = pairs["per_token"].shape
    outputs = SimpleNamespace(
        log_probs=pairs["per_token"],
        entropy=torch.zeros(shape),
        mean_logits=torch.zeros(shape),
        is_top1=torch.zeros(shape, dtype=torch.bool),
    )
    alone = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    metrics = {"train": {key: [] for key in METRICS}}
    settings = {"beta": GIVEN["beta"], "ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False}
    state = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=alone,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        loss_types=[IN_TRL[name]],
        loss_weights=[1.0],
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )
    chosen, rejected = pairs["reference"].chunk(2)
    tokens = torch.ones_like(pairs["mask"])
    inputs = {
        "input_ids": tokens,
        "attention_mask": tokens,
        "completion_mask": pairs["mask"],
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = trainer._compute_loss(state, lambda **_: outputs, inputs, False)
    torch.testing.assert_close(ours(name, pairs).mean(), loss, rtol=1e-12, atol=0)


METRICS = [
    "entropy",
    "logits/chosen",
    "logits/rejected",
    "mean_token_accuracy",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
]


@pytest.mark.parametrize("name", ["simpo", "cdpo"])
def test_the_losses_of_trl_without_a_reference_are_the_same(name, pairs):
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer

    state = SimpleNamespace(
        loss_type={"simpo": "simpo", "cdpo": "sigmoid"}[name],
        beta=GIVEN["beta"],
        simpo_gamma=GIVEN["gamma"],
        label_smoothing=GIVEN["label_smoothing"] if name == "cdpo" else 0.0,
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    sums = pairs["per_token"].sum(1)
    chosen, rejected = (sums / pairs["mask"].sum(1) if name == "simpo" else sums).chunk(2)
    losses, _, _ = CPOTrainer.cpo_loss(state, chosen, rejected)
    expected = ours(name, {**pairs, "reference": torch.zeros(8, dtype=torch.float64)})
    torch.testing.assert_close(expected, losses, rtol=1e-12, atol=0)
