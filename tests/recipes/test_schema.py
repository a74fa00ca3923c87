"""What a recipe may not say, and how it is told: what was given, what is allowed, what to do."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leyden.core.errors import UserError
from leyden.recipes import load_recipe
from leyden.recipes.loader import dry, parse_recipe
from leyden.tokenizer import Tokenizer

STAGE = {"name": "one", "objective": "pretrain", "steps": 10}


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_recipe(data, "mine.toml")
    message = str(caught.value)
    assert message.startswith("mine.toml")
    assert "\n" not in message
    return message


def refused_stage(**fields: Any) -> str:
    return refusal({"stage": [{**STAGE, **fields}]})


def test_the_smallest_recipe() -> None:
    recipe = parse_recipe({"stage": [STAGE]}, "mine.toml")
    assert recipe.model.vocab_size == recipe.tokenizer.vocab_size == 8192
    assert recipe.model.num_hidden_layers == 8
    assert recipe.stage[0].total_steps == 10


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"hiden_size": 64}, ["unknown key 'hiden_size'", "did you mean 'hidden_size'"]),
        ({"preset": "tny"}, ["preset 'tny' is unknown", "did you mean 'tiny'"]),
        ({"layer_types": ["linear_attention"] * 3}, ["3 entries", "num_hidden_layers is 8", "leave layer_types out"]),
        ({"layer_types": ["lightning"] * 8}, ["layer_types.0", "or 'latent_attention'", "lightning"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads (4)", "multiple of num_key_value_heads (3)"]),
        ({"rotary_dim": 128}, ["rotary_dim (128)", "must not exceed head_dim (64)"]),
        ({"rotary_dim": 3}, ["'rotary_dim': must be even", "given: 3"]),
        ({"num_local_experts": 1}, ["num_experts_per_tok (2)", "num_local_experts (1)"]),
        ({"hidden_size": 0}, ["'hidden_size'", "greater than or equal to 1", "given: 0"]),
        ({"vocab_size": 300}, ["model.vocab_size (300)", "vocabulary (8192)", "leave model.vocab_size out"]),
        (7, ["[model] must be a table", "given 7"]),
    ],
)
def test_a_model_that_cannot_be(model: Any, says: list[str]) -> None:
    message = refusal({"model": model, "stage": [STAGE]})
    assert all(part in message for part in says), message


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"steps": None}, ["stage 'one' has no length", "give it steps, tokens, minutes or epochs"]),
        ({"steps": None, "tokens": 8192, "epochs": 2}, ["two lengths"]),
        ({"tokens": 5000}, ["stage 'one' has two lengths", "not several"]),
        ({"seq_len": 3000}, ["the 8192 tokens", "multiple of seq_len (3000)"]),
        ({"batch_tokens": 1024}, ["the 1024 tokens", "multiple of seq_len (2048)"]),
        ({"batch_tokens": 12_288}, ["batch_tokens (12288)", "multiple of micro_batch_tokens (8192)", "8192 and 16384"]),
        ({"batch_tokens": 0}, ["'stage.0.batch_tokens': must be a number of tokens", "given: 0"]),
        ({"batch_tokens": "8k"}, ["'stage.0.batch_tokens': must be a number of tokens", "given: '8k'"]),
        ({"batch_tokens": []}, ["stage 'one': batch_tokens", "the first is at 0"]),
        ({"batch_tokens": [[0, 8192], [8192.5, 8192]]}, ["or pairs [tokens, number]", "8192.5"]),
        ({"lr_changes": [[9, 1e-4], [5, 1e-5]]}, ["stage 'one': lr_changes", "that rise", "[[9, 0.0001], [5, 1e-05]]"]),
        ({"lr_changes": [[0, 1e-4]]}, ["stage 'one': lr_changes"]),
        ({"lr_changes": [[9, 1e-4]], "final_lr": 2e-4}, ["final_lr (0.0002)", "the last of lr_changes (0.0001)"]),
        ({"max_batch_tokens": 32_768}, ["stage 'one': max_batch_tokens is the limit of batch = 'critical'"]),
        ({"batch": "critical"}, ["stage 'one': batch = 'critical' compares", "lower micro_batch_tokens"]),
        ({"batch": "critical", "batch_tokens": 16_384}, ["stage 'one'", "is not measured", "noise_scale_steps = 10"]),
        (
            {"batch": "critical", "batch_tokens": [[0, 16_384], [1e9, 32_768]]},
            ["stage 'one'", "batch_tokens says it too: [[0, 16384], [1000000000, 32768]]", "give the first size alone"],
        ),
        (
            {"batch": "critical", "batch_tokens": 16_384, "max_batch_tokens": 30_000},
            ["16384 tokens cannot double within max_batch_tokens (30000)", "at least 32768"],
        ),
        ({"batch": "crit"}, ["'stage.0.batch': must be 'stated' or 'critical'"]),
        ({"batch_tokens": [[5, 8192]]}, ["stage 'one': batch_tokens", "the first is at 0", "given marks at [5]"]),
        ({"batch_tokens": [[0, 8192], [9, 8193]]}, ["batch_tokens (8193)", "8192 and 16384"]),
        ({"lr": 1e-4, "final_lr": 1e-3}, ["final_lr (0.001)", "must not exceed lr (0.0001)"]),
        ({"final_lr": 0}, ["stage 'one'", "exponential decay never comes to final_lr = 0", "linear or cosine"]),
        ({"final_lr": -1}, ["'stage.0.final_lr': must be greater than or equal to 0 (given: -1)"]),
        ({"objective": "pretrian"}, ["'stage.0.objective'", "'pretrain'", "given: 'pretrian'"]),
        ({"warmup": 3}, ["unknown key 'stage.0.warmup'", "did you mean 'warmup_steps'"]),
        ({"steps": 0}, ["'stage.0.steps'", "greater than or equal to 1", "given: 0"]),
        ({"decay_share": 1.5}, ["'stage.0.decay_share'", "less than or equal to 1"]),
        ({"seq_len": 2_097_152, "batch_tokens": 2_097_152, "micro_batch_tokens": 2_097_152}, ["1048576", "2097152"]),
    ],
)
def test_a_stage_that_cannot_be(stage: dict[str, Any], says: list[str]) -> None:
    message = refused_stage(**stage)
    assert all(part in message for part in says), message
    assert "at least 1 item" not in message, "the stage is there, and wrong"
    assert "Input should" not in message


def test_stages_of_one_name_are_refused() -> None:
    message = refusal({"stage": [STAGE, {**STAGE, "name": "two"}, STAGE]})
    assert "stages must have different names; given one, two, one" in message


def test_no_stage_is_no_recipe() -> None:
    assert "'stage' is required" in refusal({})
    assert "at least 1 item" in refusal({"stage": []})


def test_sections_that_cannot_be() -> None:
    assert "unknown key 'tain'; did you mean 'train'?" in refusal({"stage": [STAGE], "tain": {}})
    assert "did you mean 'checkpoint_steps'" in refusal({"stage": [STAGE], "train": {"checkpoint_step": 5}})
    assert "did you mean 'beta1'" in refusal({"stage": [STAGE], "train": {"optimizer": {"beta_1": 0.9}}})
    assert "greater than or equal to 261" in refusal({"stage": [STAGE], "tokenizer": {"vocab_size": 200}})
    assert "did you mean 'vocab_size'" in refusal({"stage": [STAGE], "tokenizer": {"vocab": 300}})


def test_a_tokenizer_of_one_s_own_gives_the_vocabulary(tmp_path: Path) -> None:
    Tokenizer.train(["to be or not to be"] * 2, vocab_size=264).save(tmp_path / "tokenizer")
    data: dict[str, Any] = {"tokenizer": {"path": str(tmp_path / "tokenizer")}, "stage": [STAGE]}
    assert parse_recipe(data, "mine.toml").model.vocab_size == 264
    assert parse_recipe({**data, "model": {"vocab_size": 272}}, "mine.toml").model.vocab_size == 272
    assert "(264)" in refusal({**data, "model": {"vocab_size": 263}})


def test_a_tokenizer_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no/such/place"):
        parse_recipe({"tokenizer": {"path": "no/such/place"}, "stage": [STAGE]}, "mine.toml")


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(UserError, match="quickstrt is neither a file nor a shipped recipe; did you mean 'quickstart'"):
        load_recipe("quickstrt")


def test_tokens_are_rounded_up_to_steps() -> None:
    stage = {"name": "one", "objective": "pretrain", "seq_len": 512, "batch_tokens": 1024}
    for tokens, steps in ((1, 1), (1024, 1), (1025, 2)):
        assert parse_recipe({"stage": [{**stage, "tokens": tokens}]}, "mine.toml").stage[0].total_steps == steps


def test_a_batch_size_that_changes() -> None:
    stage = {"name": "one", "objective": "pretrain", "seq_len": 512, "micro_batch_tokens": 512}
    stage |= {"tokens": 10_000, "batch_tokens": [[0, 1024], [2e3, 2048], [6000, 4096]]}
    recipe = parse_recipe({"stage": [stage]}, "mine.toml")
    assert [recipe.stage[0].batch_schedule.micro_batches_at(step) for step in range(6)] == [2, 2, 4, 4, 8, 8]
    assert recipe.stage[0].total_steps == 5
    assert parse_recipe(tomllib.loads(dry(recipe)), "printed") == recipe


def test_a_rate_that_changes() -> None:
    """In whole steps, with warm-up before and a decay behind."""
    stage = {"name": "one", "objective": "pretrain", "seq_len": 64, "micro_batch_tokens": 64, "batch_tokens": 64}
    stage |= {"steps": 10, "lr": 2e-4, "lr_changes": [[200, 1e-4]], "warmup_steps": 2, "final_lr": 2.5e-5}
    (one,) = parse_recipe({"stage": [stage]}, "mine.toml").stage
    rates = [one.lr_at(step, 10) for step in range(10)]
    assert rates == pytest.approx([1e-4, 2e-4, 2e-4, 2e-4, *[1e-4] * 4, 5e-5, 2.5e-5])


def test_a_dry_run_prints_the_recipe_that_would_run(
    recipe_file: Path, tmp_path: Path, leyden_cli: Callable[..., Any]
) -> None:
    outcome = leyden_cli("run", recipe_file, "--dry-run", "--set", "stage.long.lr=5e-4", "--dir", tmp_path / "none")
    assert (outcome.code, outcome.err) == (0, "")
    (tmp_path / "printed.toml").write_text(outcome.out)
    changed = load_recipe(str(recipe_file), ["stage.long.lr=5e-4"])
    assert load_recipe(str(tmp_path / "printed.toml")) == changed
    assert changed.stage[1].lr == 5e-4
    assert not (tmp_path / "none").exists()


def test_biases_that_are_not_there_or_stay() -> None:
    message = refused_stage(expert_bias_share=0.9)
    assert "stage 'one': expert_bias_share is of the biases" in message and "'softmax_topk'" in message
    moving = {"model": {"router": "sigmoid_groups"}, "stage": [{**STAGE, "expert_bias_rate": 0.01}]}
    assert "train.lora leaves the model as it is" in refusal({**moving, "train": {"lora": {}}})
    recipe = parse_recipe(moving, "mine.toml")
    assert recipe.stage[0].expert_bias_rate == 0.01
