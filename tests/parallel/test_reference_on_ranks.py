"""Reference log-probabilities under parallel plans: every rank gets those of one process, and the model's hash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import mesh_of
from one_process import TWO_LAYERS
from test_exactness import DROPS, build
from two_objectives import conversations, segments

from leyden.align.preference.batches import fit_pairs, paired
from leyden.align.preference.reference import Reference, ReferenceOf, compute_reference
from leyden.data.loader.once import OnceBatches
from leyden.parallel import Plan, RankGroup, attach
from leyden.train import MasterAdamW, TrainState

OF = ReferenceOf("model", "answers")


def batches_of(per_step: int) -> OnceBatches:
    pairs = fit_pairs(conversations(4, groups=30)[0], 48, "leave_out")
    return OnceBatches(paired(pairs), seq_len=48, batch_tokens=192, multiple=per_step)


def reference_of(plan: Plan, folder: Path) -> tuple[str, np.ndarray]:
    """The hash of the model and the log-probabilities, in parts that are written down one by one."""
    model = build(TWO_LAYERS | DROPS)
    if plan.world == 1:
        state = TrainState(model, MasterAdamW(model))
    else:
        mesh = mesh_of(plan)
        attached = attach(model, mesh, torch.float64)
        state = TrainState(attached.model, MasterAdamW(attached.weights), RankGroup(mesh))
    found = compute_reference(state, [batches_of(2)], 60, folder, OF, per_step=2)
    assert found.complete
    return state.model_hash(), found.values


def test_one_process_has_them_from_whole_logits(tmp_path: Path) -> None:
    name, values = reference_of(Plan(), tmp_path / "reference")
    model, expected, batches = build(TWO_LAYERS | DROPS).eval(), np.zeros(60), batches_of(2)
    for number in range(batches.num_batches):
        batch = batches.batch(number)
        answers = batch.per_document["answer"][batch.groups >= 0].tolist()
        for answer, place in zip(answers, segments(batch), strict=True):
            labels = batch.labels[0, place]
            learned = labels >= 0
            with torch.no_grad():
                logits = model.lm_head(model.features(batch.tokens[:, place]).hidden)[0]
            expected[answer] = logits.log_softmax(-1)[learned].gather(1, labels[learned][:, None]).sum()
    np.testing.assert_allclose(values, expected, rtol=1e-10)
    stored = Reference.read(tmp_path / "reference")
    assert stored is not None and (stored.values == values).all()
    other = build(TWO_LAYERS | DROPS)
    weight = next(other.parameters())
    with torch.no_grad():
        weight[:2] = weight[[1, 0]]  # the same numbers in other places
    assert TrainState(other, MasterAdamW(other)).model_hash() != name


@pytest.mark.parametrize(
    "plan",
    [
        Plan(dp_shard=2, cp=2, ep=2),
        Plan(pp=2, tp=2),
        pytest.param(Plan(dp_replicate=2, dp_shard=2), marks=pytest.mark.slow),
        pytest.param(Plan(dp_shard=2, tp=2, etp=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_rank_has_those_of_one_process(ranks: Callable[..., list[Any]], plan: Plan, tmp_path: Path) -> None:
    name, values = reference_of(Plan(), tmp_path / "alone")
    for found_name, found in ranks(4, reference_of, plan, tmp_path / "ranks"):
        assert found_name == name
        np.testing.assert_allclose(found, values, rtol=1e-10)
