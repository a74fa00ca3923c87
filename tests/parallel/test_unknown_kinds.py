"""A kind of layer, or a weight, that a room does not know raises there; it is never taken for another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from one_process import small_config, small_model
from torch import nn

from leyden.checkpoint.layouts.minimax import MINIMAX
from leyden.core.errors import UserError
from leyden.model import MIXERS, HybridLM, ModelConfig, count_model
from leyden.model.config import LayerType, MlpType, RouterType
from leyden.model.experts import FEED_FORWARDS, ROUTERS
from leyden.model.kinds import entry_of
from leyden.parallel import Plan
from leyden.parallel.planner import StepShape
from leyden.parallel.planner.activations import layer_activations
from leyden.parallel.planner.mixers import MixerTerms, terms_of
from leyden.parallel.planner.rank import Rank
from leyden.parallel.planner.traffic import predict_attention, predict_traffic
from leyden.parallel.sequence import EXCHANGES, install_sequence
from leyden.parallel.tensor import install_tensor
from leyden.parallel.weights import kind_of, part_of

_GROUP = SimpleNamespace(size=lambda: 2, rank=lambda: 0)
_MESH: Any = SimpleNamespace(plan=Plan(cp=2, tp=2), groups={"tp": _GROUP, "cp": _GROUP})


class Recurrence(nn.Module):
    """A mixer, or a feed-forward, that no room knows."""


def _strange(half: str) -> HybridLM:
    model = small_model(num_local_experts=0)
    model.layers[1].set_submodule(half, Recurrence())
    return model


def _config() -> ModelConfig:
    """With a layer type that validation would not let pass."""
    kinds = ("linear_attention", "hgrn", "linear_attention")
    return small_config().model_copy(update={"layer_types": kinds})


def _rank(**axes: int) -> Rank:
    at = dict.fromkeys(("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "etp", "edp"), 0)
    return Rank(_config(), Plan(**axes), StepShape(seq_len=32, micro_batch_tokens=64), at)


@pytest.mark.parametrize(
    "name",
    ["mtp.0.weight", "vision.blocks.0.weight", "layers.1.self_attn.forget.weight", "layers.0.mlp.gate.bias"],
)
def test_a_weight_of_no_known_name_is_not_divided(name: str) -> None:
    for ask in (kind_of, lambda name: part_of(name, (8, 8), Plan(tp=2), {"tp": 0})):
        with pytest.raises(ValueError, match=f"how ranks divide the weight {name}"):
            ask(name)


def test_every_weight_of_a_model_has_a_known_name() -> None:
    for changes in ({}, {"num_local_experts": 0}, {"shared_intermediate_size": 8}):
        for name, weight in small_model(**changes).named_parameters():
            part = part_of(name, tuple(weight.shape), Plan(), dict.fromkeys(("tp", "ep", "etp"), 0))
            assert part.local_shape == weight.shape, name


@pytest.mark.parametrize("half", ["self_attn", "mlp"])
def test_tensor_ranks_refuse_what_they_cannot_divide(half: str) -> None:
    with pytest.raises(UserError, match=r"does not know how to divide Recurrence.*tp = 1"):
        install_tensor(_strange(half), _MESH)


def test_context_ranks_refuse_what_has_no_exchange() -> None:
    with pytest.raises(UserError, match=r"no exchange for Recurrence.*cp = 1"):
        install_sequence(_strange("self_attn"), _MESH)


def test_the_planner_and_the_count_refuse_a_layer_type_that_they_do_not_know() -> None:
    rank = _rank(cp=1)
    asks: list[tuple[Any, Any]] = [(layer_activations, ("hgrn", "dense")), (predict_attention, "hgrn")]
    for ask, kind in asks:
        with pytest.raises(UserError, match="'hgrn' has no terms in the planner"):
            ask(rank, kind)
    with pytest.raises(UserError, match="'hgrn'"):
        predict_traffic(rank)
    with pytest.raises(UserError, match="'hgrn' has no mixer"):
        count_model(_config())


def test_the_released_layout_has_no_code_for_another_layer_type() -> None:
    with pytest.raises(UserError, match="minimax layout cannot express layers of type hgrn"):
        MINIMAX.write_config(_config(), torch.float32, None)


def test_what_a_configuration_may_name_every_table_has() -> None:
    """So that a kind is refused by the configuration, or known in every room."""
    kinds = get_args(LayerType)
    assert set(MIXERS) == set(kinds)
    assert {type(terms_of(kind)) for kind in kinds} == {MixerTerms}
    assert set(EXCHANGES) == set(MIXERS.values())
    assert set(FEED_FORWARDS) == set(get_args(MlpType))
    assert set(ROUTERS) == set(get_args(RouterType))


def test_a_refusal_names_the_kinds_that_there_are() -> None:
    assert entry_of({"a": 1}, "a", "is unknown") == 1
    with pytest.raises(UserError, match="'linear_atention' is unknown; did you mean 'linear_attention'"):
        entry_of({"linear_attention": 1}, "linear_atention", "is unknown")
    with pytest.raises(UserError, match="'hgrn' is unknown; allowed: one, two"):
        entry_of({"two": torch, "one": nn}, "hgrn", "is unknown")
