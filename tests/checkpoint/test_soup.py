"""Averages of models against float64 arithmetic on their weights; what cannot be averaged is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.checkpoint.soup import SOUP_FILE, last_of_run, soup
from leyden.checkpoint.tensor_files import TensorFiles
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.tokenizer import Tokenizer
from leyden.train import RunSettings, build_state

ModelMaker = Callable[..., HybridLM]
Cli = Callable[..., Any]


def mean(models: list[HybridLM], shares: list[float], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    states = [model.state_dict() for model in models]
    return {
        name: (sum(share * state[name].double() for share, state in zip(shares, states, strict=True)) / sum(shares)).to(
            dtype if states[0][name].dtype == dtype else torch.float32
        )
        for name in states[0]
    }


def assert_is(directory: Path, expected: dict[str, torch.Tensor]) -> None:
    state = leyden.load(directory)[0].state_dict()
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert state[name].dtype == values.dtype, name
        assert torch.equal(state[name], values), name


@pytest.mark.parametrize("layout", ["leyden", "transformers", "minimax", None])
@pytest.mark.parametrize("shares", [None, [3.0, 0.5, 1.5]])
def test_models_in_all_layouts(
    random_model: ModelMaker, tmp_path: Path, layout: str | None, shares: list[float] | None
) -> None:
    models = [random_model(seed=seed, router_aux_loss="switch") for seed in range(3)]
    for model, of in zip(models, ("leyden", "transformers", "minimax"), strict=True):
        leyden.save(model, None, tmp_path / of, layout=of)
    given = [tmp_path / of for of in ("leyden", "transformers", "minimax")]
    soup(given, tmp_path / "soup", weights=shares, layout=layout)
    assert_is(tmp_path / "soup", mean(models, shares or [1.0] * 3, torch.float32))
    written = json.loads((tmp_path / "soup" / "config.json").read_text())["model_type"]
    assert written == {"leyden": "leyden", "minimax": "minimax_text_01"}.get(str(layout), "minimax")


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_local_experts": 0}])
def test_models_in_16_bits_are_rounded_once(random_model: ModelMaker, tmp_path: Path, changes: dict[str, Any]) -> None:
    models = [random_model(torch.bfloat16, seed=seed, **changes) for seed in range(5)]
    for index, model in enumerate(models):
        leyden.save(model, None, tmp_path / str(index))
    soup([tmp_path / str(index) for index in range(5)], tmp_path / "soup", layout="leyden", file_bytes=10_000)
    assert len(list((tmp_path / "soup").glob("*.safetensors"))) > 3
    assert_is(tmp_path / "soup", mean(models, [1.0] * 5, torch.bfloat16))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[HybridLM]]:
    """Three checkpoints of a run, and what is in them."""
    config = ModelConfig.parse(
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
        | {"num_key_value_heads": 1, "rotary_dim": 4, "intermediate_size": 8, "num_local_experts": 4},
        "test model",
    )
    state, models = build_state(config, RunSettings(dtype="bfloat16"), row_tokens=16), []
    for step in range(1, 4):
        state.step = step
        for master in state.optimizer.masters().values():
            master += 0.1 * torch.randn(master.shape, generator=torch.Generator().manual_seed(step))
        state.save(tmp_path / "run", keep=3)
        model = HybridLM(config)
        model.load_state_dict(state.optimizer.masters(), strict=False)
        models.append(model)
    state.finish_saving()
    return tmp_path / "run", models


def test_the_last_checkpoints_of_a_run(
    run: tuple[Path, list[HybridLM]], tmp_path: Path, leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, models = run
    names = [path.name for path in last_of_run(directory, 2)]
    assert names == ["step_00000002", "step_00000003"]
    outcome = leyden_cli("soup", directory, tmp_path / "soup", "--last", "2", "--layout", "leyden")
    assert outcome.code == 0, outcome.err
    assert_is(tmp_path / "soup", mean(models[1:], [1.0, 1.0], torch.float32))
    noted = json.loads((tmp_path / "soup" / SOUP_FILE).read_text())["models"]
    assert [Path(one["directory"]).name for one in noted] == names
    assert [one["share"] for one in noted] == [1.0, 1.0]
    assert all(len(one["fingerprint"]) == 64 for one in noted)
    by_name = [directory / "checkpoints" / name for name in names]
    outcome = leyden_cli("soup", *by_name, tmp_path / "named", "--weights", "1,3")
    assert outcome.code == 0, outcome.err
    assert_is(tmp_path / "named", mean(models[1:], [1.0, 3.0], torch.float32))


def test_too_few_checkpoints(run: tuple[Path, list[HybridLM]], tmp_path: Path, leyden_cli: Cli) -> None:
    outcome = leyden_cli("soup", run[0], tmp_path / "soup", "--last", "4")
    assert outcome.code == 2
    assert "has 3 checkpoints (step_00000001, step_00000002, step_00000003), fewer than --last 4" in outcome.err
    assert "train.keep_checkpoints" in outcome.err
    assert not (tmp_path / "soup").exists()


@pytest.fixture
def pair(random_model: ModelMaker, tmp_path: Path) -> tuple[Path, Path]:
    tokenizer = Tokenizer.train(["a jar keeps lightning, a jar keeps it"] * 3, vocab_size=265)
    for seed in range(2):
        leyden.save(random_model(vocab_size=300, seed=seed), tokenizer, tmp_path / f"m{seed}")
    return tmp_path / "m0", tmp_path / "m1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": 5e5}, "rope_theta is 10000.0 in the one and 500000.0 in the other"),
        ({"intermediate_size": 24}, "intermediate_size is 16 in the one and 24 in the other"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2}},
            r"rope_scaling is default in .* and linear \(factor",
        ),
    ],
)
def test_another_shape_is_refused(
    random_model: ModelMaker, pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    leyden.save(random_model(vocab_size=300, **changes), None, tmp_path / "other")
    with pytest.raises(UserError, match=said):
        soup([*pair, tmp_path / "other"], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_another_tokenizer_is_refused(random_model: ModelMaker, pair: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["to be or not to be"] * 3, vocab_size=263)
    leyden.save(random_model(vocab_size=300), tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match=r"the tokenizer is .* in the one and"):
        soup([*pair, tmp_path / "other"], tmp_path / "soup")


def test_a_model_without_a_tokenizer_gets_that_of_the_others(
    random_model: ModelMaker, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    leyden.save(random_model(vocab_size=300), None, tmp_path / "bare")
    soup([tmp_path / "bare", *pair], tmp_path / "soup")
    tokenizer = leyden.load(tmp_path / "soup")[1]
    assert tokenizer is not None and tokenizer.fingerprint == Tokenizer.load(pair[0]).fingerprint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m0", "out"], "2 models or more; given 1"),
        (["m0", "m0", "out"], "m0 is named twice"),
        (["m0", "m1", "m1"], "m1 is a model that is to be read itself"),
        (["m0", "m1", "m0"], "is a model that is to be read itself"),
        (["m0", "m1", "out", "--weights", "1"], "--weights has 1 numbers for 2 models"),
        (["m0", "m1", "out", "--weights", "1,-1"], "must be above 0"),
        (["m0", "m1", "out", "--weights", "1,x"], "numbers with commas"),
        (["m0", "m1", "out", "--last", "2"], "--last takes the checkpoints of one run; given 2 models"),
        (["m0", "gone", "out"], "gone does not exist"),
    ],
)
def test_what_cannot_be_averaged(
    pair: tuple[Path, Path], tmp_path: Path, leyden_cli: Cli, arguments: list[str], said: str
) -> None:
    given = [tmp_path / one if one in ("m0", "m1", "gone", "out") else one for one in arguments]
    outcome = leyden_cli("soup", *given)
    assert outcome.code == 2, outcome
    assert said in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


def test_an_average_that_is_stopped_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorStream, "append", stop)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        soup(pair, tmp_path / "soup")
    assert sorted(tmp_path.iterdir()) == before


def test_of_stacked_experts_one_is_read_at_a_time(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no tensor is mapped, whose pages would count as this process's memory."""
    read, whole = [], TensorFiles.read

    def note(files: TensorFiles, name: str, first: int, last: int) -> torch.Tensor:
        found = whole(files, name, first, last)
        read.append((name, found.numel()))
        return found

    monkeypatch.setattr(TensorFiles, "read", note)
    monkeypatch.delattr(TensorFiles, "__getitem__")
    soup(pair, tmp_path / "soup", layout="leyden")
    experts = [numel for name, numel in read if name.endswith("gate_up_proj")]
    assert experts == [2 * 16 * 32] * 4 * 3 * 2  # of 4 experts, in 3 layers, of 2 models
