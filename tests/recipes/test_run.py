"""A whole run of a small recipe: what it leaves in its directory, and what can be done with it."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.recipes import load_recipe

FILES = {
    "recipe.toml",
    "environment.json",
    "data.json",
    "held_out.jsonl",
    "SHA256SUMS",
    "data/text-00000/shard.json",
    "data/text-00000/shard.tokens",
    "data/text-00000/shard.ends",
    "data/text-00000/shard.documents",
    "data/metadata.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "metrics.jsonl",
    "checkpoints/step_00000008/manifest.json",
    "checkpoints/step_00000008/values.json",
    "checkpoints/step_00000008/tensors.json",
    "checkpoints/step_00000008/rank_00000.safetensors",
    "checkpoints/step_00000010/manifest.json",
    "checkpoints/step_00000010/values.json",
    "checkpoints/step_00000010/tensors.json",
    "checkpoints/step_00000010/rank_00000.safetensors",
    "final/SHA256SUMS",
    "final/config.json",
    "final/model.safetensors",
    "final/tokenizer.json",
    "final/tokenizer_config.json",
    "eval.jsonl",
    "samples.jsonl",
    "report/index.html",
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_directory_holds_what_the_page_says(finished: Path) -> None:
    found = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert found == FILES
    page = (Path(__file__).parents[2] / "docs" / "map.md").read_text(encoding="utf-8")
    for name in {file.partition("/")[0] for file in FILES}:
        assert f"`{name}" in page, f"docs/map.md does not say what {name} is"


def test_the_resolved_recipe_is_the_one_that_ran(finished: Path, recipe_file: Path) -> None:
    assert load_recipe(str(finished / "recipe.toml")) == load_recipe(str(recipe_file))
    said = tomllib.loads((finished / "recipe.toml").read_text())
    assert said["model"]["vocab_size"] == 500
    assert said["stage"][0]["micro_batch_tokens"] == 128


def test_each_step_is_in_the_metrics_once(finished: Path) -> None:
    records = lines(finished / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 11))
    assert [record["stage"] for record in records] == ["short"] * 6 + ["long"] * 4
    assert [record["tokens"] for record in records] == [256 * step for step in range(1, 11)]
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    assert records[0]["loss"] == pytest.approx(6.21, abs=0.3)  # the logarithm of 500 tokens
    for record in records:
        assert len(record["expert_load"]) == 3
        assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in record["expert_load"])
        assert record["dropped"] == 0
        assert record["grad_norm"] > 0
        assert record["tokens_per_second"] > 0
        assert not record["skipped"]


def test_the_evaluation_stands_beside_its_baselines(finished: Path) -> None:
    *while_training, record = lines(finished / "eval.jsonl")
    assert [(line["task"], line["step"]) for line in while_training] == [("held_out", 6), ("held_out", 10)]
    assert record["task"] == "bits_per_byte"
    assert set(record["baselines"]) == {"unigram_tokens", "xz_4096", "xz_documents"}
    held_out = lines(finished / "held_out.jsonl")
    assert record["bytes"] == sum(len(document["text"].encode()) for document in held_out)
    assert 0 < record["value"] < 8


def test_the_samples_are_completions_of_the_prompts(finished: Path) -> None:
    samples = lines(finished / "samples.jsonl")
    assert [sample["prompt"] for sample in samples] == ["the light", "a jar"]
    assert all(sample["text"] for sample in samples)


def test_stock_transformers_computes_our_logits(finished: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer = leyden.load(finished / "final")
    assert tokenizer is not None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.rope_theta == 80_000.0  # of the last stage
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished / "final").eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "final")
    text = json.loads((finished / "held_out.jsonl").read_text().splitlines()[0])["text"][:1500]
    ids = tokenizer.encode(text)
    assert their_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    with torch.no_grad():
        ours, native = model(torch.tensor([ids])), theirs(torch.tensor([ids]), use_cache=False).logits
    torch.testing.assert_close(native, ours, rtol=0, atol=2e-5 * float(ours.abs().max()))


def test_the_model_is_the_master_weights_of_the_last_checkpoint(finished: Path) -> None:
    """And not what bfloat16 left of them."""
    from safetensors.torch import load_file

    (file,) = (finished / "checkpoints" / "step_00000010").glob("*.safetensors")
    saved = load_file(file)
    model, _ = leyden.load(finished / "final")
    masters = {name: tensor for name, tensor in saved.items() if "lm_head" in name and "master" in name}
    assert len(masters) == 1, sorted(saved)
    (master,) = masters.values()
    assert torch.equal(model.lm_head.weight, master)
    assert not torch.equal(model.lm_head.weight, master.bfloat16().float())


def test_the_report_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report" / "index.html").read_text(encoding="utf-8")
    assert "the light" in page
    assert "<svg" in page
    assert "src=" not in page
    assert 'rel="stylesheet"' not in page


def test_a_finished_run_is_left_alone(finished: Path, recipe_file: Path, leyden_cli: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    outcome = leyden_cli("run", recipe_file, "--dir", finished)
    assert outcome.code == 0
    assert f"{finished} is finished." in outcome.err
    assert f"model:  {finished / 'final'}" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_what_it_says(finished: Path, recipe_file: Path) -> None:
    said = (recipe_file.parent / "said.txt").read_text()
    assert "documents: 60, 0.3 MB to train on" in said
    assert "bits per byte on unseen documents: " in said
    assert "the light" in said
    assert f"report: {finished / 'report' / 'index.html'}" in said


def test_a_model_that_transformers_cannot_express_is_saved_in_our_layout(
    recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    """Its first layer is dense; a run must not fail when it is over."""
    recipe = tmp_path / "dense.toml"
    mlp_types = 'mlp_types = ["dense", "experts", "experts"]\ndense_intermediate_size = 48\n'
    text = recipe_file.read_text().replace("num_local_experts = 4\n", f"num_local_experts = 4\n{mlp_types}")
    recipe.write_text(text)
    outcome = leyden_cli("run", recipe, "--dir", tmp_path / "run", "--set", "stage.short.steps=1")
    assert outcome.code == 0, outcome.err
    assert "saved in the leyden layout: the transformers layout cannot express" in " ".join(outcome.err.split())
    model, _ = leyden.load(tmp_path / "run" / "final")
    assert model.config.mlp_types == ("dense", "experts", "experts")
