"""A stage on chats from the recipe to the held-out loss: read, set aside, cut, trained, resumed, measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from whole_runs import SMALL_MODEL, after_step, assert_same_run, interrupt, metrics

from leyden.core.errors import Interrupted, UserError
from leyden.recipes.loader import parse_recipe
from leyden.recipes.runner import check, run
from leyden.tokenizer import Tokenizer


def chat(number: int) -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"Is {number} so?"},
        {"role": "assistant", "content": f"Yes, {number} is so. " * 3},
    ]
    return {"messages": said * (1 + number % 3)}


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    tokenizer = tmp_path / "tokenizer"
    Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270).save(tokenizer)
    lines = [*map(json.dumps, map(chat, range(40))), "{", json.dumps({"messages": []})]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines), encoding="utf-8")
    stage = {"name": "sft", "objective": "sft", "steps": 4, "seq_len": 128, "batch_tokens": 256, "normalise": "chats"}
    return {
        "model": SMALL_MODEL,
        "tokenizer": {"path": str(tokenizer)},
        "data": {"chats": [str(tmp_path / "chats.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32", "checkpoint_steps": 2},
        "stage": [stage],
        "evaluate": {"every_steps": 2, "prompts": ["Is it"], "sample_tokens": 2},
    }


def test_a_dry_run_says_what_is_set_aside_cut_and_left_out(recipe, tmp_path, capsys):
    check(parse_recipe(recipe, "test"), tmp_path / "run")
    told = " ".join(capsys.readouterr().err.split())
    assert "40 with" in told and "set aside: 1 not JSON, 1 no chat" in told
    assert "row 42: no chat" in told and "held out" in told
    assert "are cut, by" in told and "and 0 are left out" in told
    assert not (tmp_path / "run").exists()
    recipe["data"]["too_long"] = "leave_out"
    check(parse_recipe(recipe, "test"), tmp_path / "run")
    assert "0 are cut, by 0 tokens, and" in " ".join(capsys.readouterr().err.split())


def test_a_run_on_chats_and_one_that_was_killed_are_the_same(recipe, tmp_path, monkeypatch):
    run(parse_recipe(recipe, "test"), tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["task"] == "held_out"] == [2, 4]
    assert all(line["chats"] > 0 for line in metrics(tmp_path / "whole"))
    aside = [json.loads(line) for line in (tmp_path / "whole" / "set_aside.jsonl").read_text().splitlines()]
    assert [(one["place"], one["reason"]) for one in aside] == [("line 41", "not JSON"), ("row 42", "no chat")]
    assert (tmp_path / "whole" / "report" / "index.html").exists()
    after_step(monkeypatch, 3, interrupt)
    with pytest.raises(Interrupted):
        run(parse_recipe(recipe, "test"), tmp_path / "killed")
    monkeypatch.undo()
    run(parse_recipe(recipe, "test"), tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "trains on chats, and .*names none"),
        ({"objective": "pretrain", "normalise": "tokens"}, "trains on documents, and .* is chats"),
        ({"mixture": {"point": [{"weights": {"all": 1}}], "transition": 0.5}}, "chats are one group, all"),
    ],
)
def test_what_does_not_go_with_chats_is_refused(recipe, change, message):
    recipe["stage"][0] |= change
    with pytest.raises(UserError, match=message):
        parse_recipe(recipe, "test")


def test_chats_train_no_tokenizer(recipe):
    del recipe["tokenizer"]
    with pytest.raises(UserError, match="chats train no tokenizer"):
        parse_recipe(recipe, "test")


ENVIRONMENT = """
class Asked:
    def prompts(self):
        return []

    def held_out(self):
        return [{"prompt": f"Is {number} so?"} for number in range(9)]

    def score(self, row, response):
        return float("Yes" in response)
"""


def test_the_finished_model_answers_an_environments_held_out_prompts(recipe, tmp_path, capsys):
    (tmp_path / "asked.py").write_text(ENVIRONMENT)
    recipe["stage"][0]["steps"] = 1
    recipe["stage"].append({**recipe["stage"][0], "name": "again"})
    recipe["evaluate"] |= {"environment": f"{tmp_path / 'asked.py'}:Asked", "environment_prompts": 4, "prompts": []}
    run(parse_recipe(recipe, "test"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    line = lines[-1]
    assert (line["task"], line["n"]) == ("held_out_answers", 4) and 0 <= line["value"] <= 1
    rewards = [one for one in lines if one["task"] == "held_out_reward"]
    assert [one["stage"] for one in rewards] == [one["name"] for one in recipe["stage"]], "at the end of each stage"
    assert rewards[-1]["value"] == line["value"] and rewards[-1]["of"] == "evaluate"
    assert [one["prompt"] for one in rewards[-1]["samples"]] == ["Is 0 so?"], "one of each kind"
    answers = [json.loads(one) for one in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in answers] == [f"Is {number} so?" for number in range(4)]
    told = " ".join(capsys.readouterr().err.split())
    assert "answers to 4 prompts that it never saw: mean reward" in told and "You: Is 0 so?" in told


def test_an_environment_without_held_out_prompts_is_refused_before_training(recipe, tmp_path):
    (tmp_path / "asked.py").write_text(ENVIRONMENT.replace("held_out", "others"))
    recipe["evaluate"]["environment"] = f"{tmp_path / 'asked.py'}:Asked"
    with pytest.raises(UserError, match=r"has no held-out prompts to ask: its method held_out\(\) gives none"):
        check(parse_recipe(recipe, "test"), tmp_path / "run")
