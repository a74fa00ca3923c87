"""A run that trains adapters alone begins with the loss of its base, is resumed bit for bit, and opens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from whole_runs import SMALL_MODEL, VOWELS, after_step, assert_same_run, interrupt, metrics

import leyden
from leyden.checkpoint.piece_index import read_index
from leyden.core.errors import Interrupted, UserError
from leyden.model import HybridLM, ModelConfig
from leyden.recipes.loader import parse_recipe
from leyden.recipes.runner import check, run
from leyden.recipes.schema import model_section
from leyden.tokenizer import Tokenizer

STAGE = {"name": "s", "objective": "pretrain", "steps": 1}
LORA = {"rank": 2, "alpha": 8, "targets": ["attention", "experts"]}


def chat(number: int) -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"Is {number} so?"},
        {"role": "assistant", "content": f"Yes, {number} is so. " * 3},
    ]
    return {"messages": said * (1 + number % 3)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("lora")
    tokenizer = Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)
    config = ModelConfig.parse(model_section(SMALL_MODEL, tokenizer.vocab_size), "test")
    leyden.save(HybridLM(config, seed=3), tokenizer, folder / "base")
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(chat(number)) for number in range(40)), encoding="utf-8")
    stage = {"name": "sft", "objective": "sft", "steps": 4, "seq_len": 128, "batch_tokens": 256, "lr": 1e-2}
    return {
        "model": {"from": str(folder / "base")},
        "data": {"chats": [str(folder / "chats.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32", "checkpoint_steps": 2, "lora": LORA},
        "stage": [stage],
        "evaluate": {"prompts": ["Is it"], "sample_tokens": 2},
    }


@pytest.fixture(scope="module")
def whole(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(parse_recipe(recipe, "test"), tmp_path_factory.mktemp("whole") / "run").parent


def test_it_begins_with_the_loss_of_its_base_and_learns(whole: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    train = {key: value for key, value in recipe["train"].items() if key != "lora"}
    run(parse_recipe(recipe | {"train": train}, "test"), tmp_path / "all")
    losses = [line["loss"] for line in metrics(whole)]
    assert losses[0] == pytest.approx(metrics(tmp_path / "all")[0]["loss"], rel=1e-6)
    assert losses[-1] < losses[0] - 0.1


def test_its_checkpoints_and_its_model_hold_adapters_alone(whole: Path, recipe: dict[str, Any]) -> None:
    newest = max((whole / "checkpoints").iterdir())
    assert all(".lora." in name for name in read_index(newest))
    assert {path.name for path in (whole / "final").iterdir() if path.suffix != ".jinja"} == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "SHA256SUMS")
    }
    assert all(".lora_" in name for name in load_file(whole / "final" / "adapter_model.safetensors"))
    base, _ = leyden.load(recipe["model"]["from"])
    model, tokenizer = leyden.load(whole)
    assert tokenizer is not None
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, base.state_dict()[n])}
    assert changed == {n for n in base.state_dict() if "_proj" in n or "output_gate" in n}
    with pytest.raises(UserError, match="holds the adapters of a run"):
        leyden.load(newest)


def test_one_that_was_killed_goes_on_with_the_same_bits(
    whole: Path, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        with pytest.raises(Interrupted):
            run(parse_recipe(recipe, "test"), tmp_path / "run")
    run(parse_recipe(recipe, "test"), tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(whole)
    for name in ("final/adapter_model.safetensors", "final/adapter_config.json", "samples.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_does_not_go_on_with_another_base(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tokenizer = leyden.load(recipe["model"]["from"])
    leyden.save(base, tokenizer, tmp_path / "base")
    own = parse_recipe(recipe | {"model": {"from": str(tmp_path / "base")}}, "test")
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        with pytest.raises(Interrupted):
            run(own, tmp_path / "run")
    leyden.save(HybridLM(base.config, seed=4), tokenizer, tmp_path / "base")
    with pytest.raises(UserError, match="has other weights now"):
        run(own, tmp_path / "run")


@pytest.fixture(scope="module")
def stages(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of all kinds of stages, which train one adapter."""
    place = tmp_path_factory.mktemp("stages")
    (place / "own.py").write_text(VOWELS, encoding="utf-8")
    (place / "text.txt").write_text("Is it so? Yes, it is so. No, it is not.\n" * 99, encoding="utf-8")
    pairs = [{"prompt": f"Is {n} so?", "chosen": f"Yes, {n}.", "rejected": f"No, {n} is not."} for n in range(20)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    engine = {"max_sequences": 8, "cache_gigabytes": 0.001, "swap_gigabytes": 0.001}
    rl = {"environment": f"{place / 'own.py'}:Vowels", "group_size": 4, "prompts_per_step": 2, "max_tokens": 8}
    sizes = {"seq_len": 96, "batch_tokens": 192, "lr": 1e-2}
    return recipe | {
        "data": {"text": [str(place / "text.txt")], "held_out_fraction": 0.2},
        "stage": [
            {"name": "pretrain", "objective": "pretrain", "steps": 1, **sizes},
            {"name": "sft", "objective": "sft", "steps": 1, "data": recipe["data"], **sizes},
            {"name": "dpo", "objective": "preference", "steps": 2, "data": {"preferences": [f"{place}/pairs.jsonl"]}}
            | sizes,
            {"name": "rl", "objective": "rl", "steps": 3, "seq_len": 64, "micro_batch_tokens": 192, "lr": 1e-2}
            | {"rl": rl | {"updates": 1, "engine": engine}},
        ],
    }


@pytest.fixture(scope="module")
def all_stages(stages: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(parse_recipe(stages, "test"), tmp_path_factory.mktemp("all") / "run").parent


def test_all_kinds_of_stages_train_one_adapter_and_each_compares_with_what_it_began_with(all_stages: Path) -> None:
    lines = metrics(all_stages)
    assert [line["stage"] for line in lines] == ["pretrain", "sft", *["dpo"] * 2, *["rl"] * 3]
    assert lines[2]["loss"] == pytest.approx(np.log(2), abs=1e-5) and lines[3]["loss"] < lines[2]["loss"]
    assert lines[4]["kl"] == 0 and lines[6]["kl"] > 0 and all(0 <= line["drift"] < 1e-3 for line in lines[4:])
    kept = all_stages / "reference" / "rl"
    assert (kept / "adapter_model.safetensors").exists() and not (kept / "config.json").exists()


def test_a_base_in_8_bits_is_trained_on_and_resumed_bit_for_bit(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = recipe | {"train": recipe["train"] | {"lora": LORA | {"int8": True}}}
    run(parse_recipe(own, "test"), tmp_path / "whole")
    losses = [line["loss"] for line in metrics(tmp_path / "whole")]
    assert losses[-1] < losses[0] - 0.1
    with monkeypatch.context() as patch:
        after_step(patch, 3, interrupt)
        with pytest.raises(Interrupted):
            run(parse_recipe(own, "test"), tmp_path / "run")
    run(parse_recipe(own, "test"), tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole", ("adapter_model.safetensors", "adapter_config.json"))


@pytest.mark.slow
def test_a_run_of_all_kinds_of_stages_that_was_killed_twice_has_the_same_bits(
    all_stages: Path, stages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (4, 6):
        with monkeypatch.context() as patch:
            after_step(patch, step, interrupt)
            with pytest.raises(Interrupted):
                run(parse_recipe(stages, "test"), tmp_path / "killed")
    run(parse_recipe(stages, "test"), tmp_path / "killed")
    assert_same_run(tmp_path / "killed", all_stages, ("adapter_model.safetensors", "adapter_config.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": SMALL_MODEL, "data": {"text": ["a"]}, "stage": [STAGE]}, "adds to a model that is there"),
        ({"stage": [{"name": "s", "objective": "sft", "steps": 1, "rope_theta": 1e5}]}, "change the model itself"),
        (
            {"data": {"preferences": ["a"]}, "stage": [{"name": "s", "objective": "reward", "steps": 1}]},
            "score head is trained whole",
        ),
        ({"train": {"lora": {"dropout": 0.1}}}, "must be 0"),
        ({"train": {"lora": {"rank": 0}}}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(recipe: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_recipe(recipe | changes, "test")


def test_an_adapter_is_a_model_to_begin_from(whole: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """All weights are trained of it; another adapter on top of it is refused."""
    again = recipe | {"model": {"from": str(whole)}}
    with pytest.raises(UserError, match="would train another one on top of it"):
        check(parse_recipe(again, "test"), tmp_path / "run")
    stage = recipe["stage"][0] | {"steps": 1}
    run(parse_recipe(again | {"train": {"dtype": "float32"}, "stage": [stage]}, "test"), tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["loss"] < metrics(whole)[0]["loss"] - 0.1


def test_a_base_that_is_changed_is_refused_before_the_first_step(recipe: dict[str, Any], tmp_path: Path) -> None:
    model = recipe["model"] | {"rope_theta": 77_000.0}
    with pytest.raises(UserError, match=r"\[model\] changes that model: rope_theta"):
        check(parse_recipe(recipe | {"model": model}, "test"), tmp_path / "run")
