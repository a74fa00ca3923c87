"""Ranks begin from a model in any layout with the bits of one process, and read their own experts alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of

import leyden
from leyden.checkpoint.starting_model import GROWING, NewRows, StartingModel
from leyden.checkpoint.tensor_files import TensorFiles
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.model.initialization import initial_weight
from leyden.parallel import ParallelConfig, Plan, RankGroup
from leyden.train import RunSettings, TrainState, build_state

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=18,
    num_hidden_layers=4,
    layer_types=("linear_attention", "full_attention") * 2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    rotary_dim=2,
    intermediate_size=12,
    num_local_experts=4,
)
SETTINGS = RunSettings(dtype="bfloat16", seed=9)
LAYOUTS = ("leyden", "transformers", "minimax")
FOUR = [
    Plan(tp=2, dp_shard=2),
    Plan(dp_shard=4, ep=2, etp=2),
    Plan(pp=2, tp=2, settings=ParallelConfig(pipeline_schedule="interleaved", stages_per_rank=2)),
    Plan(cp=2, dp_replicate=2, ep=2),
]
TWO = [Plan(ep=2, dp_shard=2), Plan(pp=2), Plan(tp=2)]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in every layout, and as the checkpoint of a run."""
    folder, model = tmp_path_factory.mktemp("forms"), HybridLM(CONFIG, seed=4)
    for layout in LAYOUTS:
        leyden.save(model, None, folder / layout, layout=layout)
    state = build_state(CONFIG, RunSettings(dtype="float32", seed=4), row_tokens=16)
    state.save(folder / "run", keep=1)
    return {layout: folder / layout for layout in LAYOUTS} | {"run": folder / "run"}


def _wrong(state: TrainState) -> list[str]:
    """What is not the rank's part of the model, or is not rounded into the weights that compute."""
    known, weights = dict(HybridLM(CONFIG, seed=4).named_parameters()), state.optimizer.weights
    problems = []
    for name, master in state.optimizer.masters().items():
        if not torch.equal(master, weights[name].part.cut(known[name].detach())):
            problems.append(name)
        if not torch.equal(weights[name].local, master.to(weights[name].local.dtype)):
            problems.append(f"{name} as it computes")
    return problems


def _begin(plan: Plan, forms: dict[str, Path]) -> dict[str, list[str]]:
    problems = {}
    for form, directory in forms.items():
        state = build_state(CONFIG, SETTINGS, row_tokens=16, rank_group=RankGroup(mesh_of(plan)))
        initial = _wrong(state)
        assert len(initial) >= len(state.optimizer.masters()) // 3, "it begins with other weights"
        state.begin_from(StartingModel.find(str(directory)))
        problems[form] = _wrong(state)
        assert state.began_from is not None and state.began_from["model"] == str(directory)
    return problems


@pytest.mark.parametrize(
    ("plan", "some"),
    [
        (FOUR[0], "run leyden"),
        (FOUR[1], "minimax"),
        (FOUR[2], "transformers"),
        (FOUR[3], "run"),
        (TWO[0], "run transformers"),
        (TWO[1], "leyden minimax"),
        (TWO[2], "transformers minimax"),
        *(pytest.param(plan, "run leyden transformers minimax", marks=pytest.mark.slow) for plan in [*FOUR, *TWO]),
    ],
    ids=str,
)
def test_bits_are_those_of_one_process(
    plan: Plan, some: str, forms: dict[str, Path], ranks: Callable[..., list[Any]]
) -> None:
    for found in ranks(plan.world, _begin, plan, {form: forms[form] for form in some.split()}):
        assert found == {form: [] for form in some.split()}


def _differs(plan: Plan, config: ModelConfig) -> list[str]:
    """The rank's weights that are not its part of the initial ones of one process."""
    settings = SETTINGS.model_copy(update={"dtype": "float32"})
    state = build_state(config, settings, row_tokens=16, rank_group=RankGroup(mesh_of(plan)))
    whole = dict(HybridLM(config, seed=settings.seed).named_parameters())
    return [
        name
        for name, weight in state.optimizer.weights.items()
        if not torch.equal(weight.local, weight.part.cut(whole[name].detach()))
    ]


@pytest.mark.parametrize("plan", [FOUR[1], FOUR[2]], ids=str)
@pytest.mark.parametrize("first", ["linear_attention", "full_attention"])
def test_a_circuit_that_looks_up_is_the_same_on_ranks(plan: Plan, first: str, ranks: Callable[..., list[Any]]) -> None:
    layers = (first, *CONFIG.layer_types[1:])
    config = CONFIG.model_copy(update={"layer_types": layers, "initialization": "induction"})
    assert ranks(plan.world, _differs, plan, config) == [[]] * plan.world


def _read_names(plan: Plan, directory: Path) -> tuple[set[str], int]:
    """The experts' tensors that this rank asks for, and the number of its experts in all layers."""
    state = build_state(CONFIG, SETTINGS, row_tokens=16, rank_group=RankGroup(mesh_of(plan)))
    asked, get = set[str](), TensorFiles.__getitem__

    def note(files: TensorFiles, name: str) -> torch.Tensor:
        asked.add(name)
        return get(files, name)

    TensorFiles.__getitem__ = note
    try:
        state.begin_from(StartingModel.find(str(directory)))
    finally:
        TensorFiles.__getitem__ = get
    spans = [w.part.spans[0] for name, w in state.optimizer.weights.items() if name.endswith("experts.down_proj")]
    return {name for name in asked if ".experts." in name}, sum(b - a for span in spans for a, b in span)


def test_a_rank_reads_its_own_experts_alone(forms: dict[str, Path], ranks: Callable[..., list[Any]]) -> None:
    found = ranks(2, _read_names, Plan(dp_shard=2, ep=2), forms["minimax"])
    (first, count), (second, other) = found
    assert count == other == CONFIG.num_hidden_layers * 2
    assert len(first) == len(second) == 3 * count
    assert not first & second


ROWS = 59
"""Of a larger vocabulary, which divides unevenly."""


def _grown(name: str, known: torch.Tensor, new_rows: NewRows) -> torch.Tensor:
    """A weight of the run: the model's rows, and behind them their mean or initial ones."""
    if name not in GROWING:
        return known
    drawn = initial_weight(name, (ROWS, 18), CONFIG, SETTINGS.seed)[50:]
    new = known.double().mean(0).float().expand(ROWS - 50, -1) if new_rows == "mean" else drawn
    return torch.cat([known, new])


def _grow(plan: Plan, directory: Path, new_rows: NewRows) -> list[str]:
    """What is not the rank's part of the model with more rows."""
    config = CONFIG.model_copy(update={"vocab_size": ROWS})
    state = build_state(config, SETTINGS, row_tokens=16, rank_group=RankGroup(mesh_of(plan)))
    state.begin_from(replace(StartingModel.find(str(directory)), new_rows=new_rows))
    known, weights = dict(HybridLM(CONFIG, seed=4).named_parameters()), state.optimizer.weights
    expected = {name: _grown(name, known[name].detach(), new_rows) for name in weights}
    return [
        name
        for name, master in state.optimizer.masters().items()
        if not torch.equal(master, weights[name].part.cut(expected[name]))
    ]


@pytest.mark.parametrize("plan", [FOUR[0], FOUR[2], TWO[1]], ids=str)
@pytest.mark.parametrize("new_rows", ["mean", "normal"])
def test_ranks_give_a_larger_vocabulary_the_rows_of_one_process(
    plan: Plan, new_rows: NewRows, forms: dict[str, Path], ranks: Callable[..., list[Any]]
) -> None:
    """Of a checkpoint under FSDP and tensor ranks, and of files; the first rank has no output projection in a
    pipeline."""
    for form in ("run", "minimax"):
        assert ranks(plan.world, _grow, plan, forms[form], new_rows) == [[]] * plan.world


def _refused(plan: Plan, directory: Path) -> str:
    config = CONFIG.model_copy(update={"vocab_size": 48})
    state = build_state(config, SETTINGS, row_tokens=16, rank_group=RankGroup(mesh_of(plan)))
    try:
        state.begin_from(StartingModel.find(str(directory)))
    except UserError as error:
        return str(error)
    return ""


def test_a_model_of_a_larger_vocabulary_is_refused_on_all_ranks(
    forms: dict[str, Path], ranks: Callable[..., list[Any]]
) -> None:
    """The stages of a pipeline have the embedding on the first rank alone, and the output projection on the last."""
    for plan in (Plan(pp=2), Plan(tp=2)):
        for said in ranks(2, _refused, plan, forms["leyden"]):
            assert "embed_tokens.weight is [48, 18] here and [50, 18] there" in said
            assert "Give the model the shape of the one that it begins from" in said
            assert "\n" not in said
