"""A stage on pairs from the recipe to the held-out accuracy: read, set aside, compared with its reference, resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_chats import chat
from whole_runs import SMALL_MODEL, after_step, assert_same_run, interrupt, metrics

from leyden.align.preference import reference as reference_module
from leyden.align.preference.reference import Reference
from leyden.core.errors import Interrupted, UserError
from leyden.recipes.loader import parse_recipe
from leyden.recipes.reference import StageReference
from leyden.recipes.runner import check, run
from leyden.tokenizer import Tokenizer

HELD_OUT = ("held_out_loss", "held_out_accuracy", "held_out_ranking_accuracy")


def pair(number: int) -> dict[str, Any]:
    """The chosen answer says yes."""
    answers = (f"Yes, {number} is so. " * (1 + number % 3), f"No, {number} is not. " * (1 + number % 2))
    return dict(zip(("prompt", "chosen", "rejected"), (f"Is {number} so?", *answers), strict=True))


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """Fine-tuning, then preferences."""
    tokenizer = tmp_path / "tokenizer"
    Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270).save(tokenizer)
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, map(chat, range(20)))), encoding="utf-8")
    lines = [*map(json.dumps, map(pair, range(40))), "{", json.dumps({"prompt": "q", "chosen": "a", "rejected": "a"})]
    lines += [json.dumps({"prompt": "q", "chosen": "a", "rejected": " "}), json.dumps({"prompt": "q", "chosen": "a"})]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sizes = {"seq_len": 160, "batch_tokens": 320, "micro_batch_tokens": 160, "lr": 3e-3}
    own = {"preferences": [str(tmp_path / "pairs.jsonl")], "held_out_fraction": 0.2}
    return {
        "model": SMALL_MODEL,
        "tokenizer": {"path": str(tokenizer)},
        "data": {"chats": [str(tmp_path / "chats.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32", "checkpoint_steps": 2},
        "stage": [
            {"name": "sft", "objective": "sft", "steps": 2, **sizes},
            {"name": "dpo", "objective": "preference", "steps": 4, "data": own, **sizes},
        ],
        "evaluate": {"every_steps": 2, "prompts": ["Is it"], "sample_tokens": 2},
    }


def only_pairs(recipe: dict[str, Any], **stage: Any) -> dict[str, Any]:
    """The recipe without its fine-tuning, and shorter."""
    dpo = recipe["stage"][1] | {"steps": 2}
    own = [{k: v for k, v in dpo.items() if k != "data"} | stage]
    return {**recipe, "data": dpo["data"], "stage": own, "evaluate": {"every_steps": 2}}


def test_a_dry_run_shows_the_stage_and_what_is_set_aside(recipe, tmp_path, capsys):
    shown = check(parse_recipe(recipe, "test"), tmp_path / "run")
    assert "pairs: dpo, beta 0.1" in shown and 'objective = "preference"' in shown
    told = " ".join(capsys.readouterr().err.split())
    assert "pairs: 40 of two answers" in told
    assert "set aside: 1 not JSON, 1 equal answers, 1 empty message, 1 no pair" in told
    assert "row 42: equal answers" in told
    assert "4 of the pairs are held out" in told and "stage 'dpo': all 36 pairs fit into sequences" in told
    assert not (tmp_path / "run").exists()


def test_the_reference_is_the_model_after_fine_tuning_and_a_killed_run_is_the_same(
    recipe, tmp_path, monkeypatch, capsys
):
    whole = tmp_path / "whole"
    run(parse_recipe(recipe, "test"), whole)
    told = " ".join(capsys.readouterr().err.split())
    assert "the reference model finds the chosen answer likelier in" in told and "on held-out pairs: loss" in told
    lines = metrics(whole)
    assert [line["stage"] for line in lines] == ["sft"] * 2 + ["dpo"] * 4
    first, last = lines[2], lines[-1]
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5), "nothing has moved from the reference yet"
    assert first["margin"] == pytest.approx(0, abs=1e-5) and last["margin"] > 0.01 and last["loss"] < first["loss"]
    assert all(line["pairs"] > 0 for line in lines[2:]) and all(name in last for name in HELD_OUT)
    evaluations = [json.loads(line) for line in (whole / "eval.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in evaluations] == [("sft", 2), ("dpo", 4), ("dpo", 6)]
    assert evaluations[-1]["held_out_accuracy"] > 0.5
    aside = (whole / "stage_data" / "dpo" / "set_aside.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in aside] == ["not JSON", "equal answers", "empty message", "no pair"]
    after_step(monkeypatch, 5, interrupt)
    with pytest.raises(Interrupted):
        run(parse_recipe(recipe, "test"), tmp_path / "killed")
    monkeypatch.undo()
    run(parse_recipe(recipe, "test"), tmp_path / "killed")
    assert_same_run(tmp_path / "killed", whole)
    # A fork from the middle of the stage has its reference, too.
    run(parse_recipe(recipe, "test"), tmp_path / "fork", origin=f"{whole}@4")
    assert metrics(tmp_path / "fork") == metrics(whole)


def test_a_pass_of_the_reference_that_was_killed_goes_on(recipe, tmp_path, monkeypatch):
    recipe = only_pairs(recipe)
    run(parse_recipe(recipe, "test"), tmp_path / "whole")
    ask, calls = reference_module._ask, []

    def killed(*given: Any) -> np.ndarray:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask(*given)

    monkeypatch.setattr(reference_module, "_ask", killed)
    with pytest.raises(Interrupted):
        run(parse_recipe(recipe, "test"), tmp_path / "killed")
    found = Reference.read(tmp_path / "killed" / "reference" / "dpo")
    assert found is not None and not found.complete and found.done
    calls.clear()
    monkeypatch.setattr(reference_module, "_ask", lambda *given: calls.append(given) or ask(*given))
    run(parse_recipe(recipe, "test"), tmp_path / "killed")
    assert sum(len(given[1]) for given in calls) == found.total - found.done, "what was done is not done again"
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_another_model_or_a_lost_reference_is_seen(recipe, tmp_path, monkeypatch, capsys):
    directory, recipe = tmp_path / "run", only_pairs(recipe)
    folder = directory / "reference" / "dpo"
    after_step(monkeypatch, 1, interrupt)
    with pytest.raises(Interrupted):
        run(parse_recipe(recipe, "test"), directory)
    monkeypatch.undo()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    values = folder / "log_probabilities.npy"
    values.write_bytes(values.read_bytes()[:-8] + b"12345678")
    with pytest.raises(UserError, match=r"(?s)missing, or damaged.*--from DIR@STEP"):
        run(parse_recipe(recipe, "test"), directory)
    for path, content in kept.items():
        path.write_bytes(content)
    found = Reference.read(folder)
    assert found is not None
    Reference(reference_module.ReferenceOf("another", found.of.answers), "", found.values, 1, 1).write(folder)
    with pytest.raises(UserError, match="they are of another model"):
        run(parse_recipe(recipe, "test"), directory)
    # What is there when the stage begins, and is of another model, is computed anew.
    fresh = tmp_path / "fresh"
    Reference(reference_module.ReferenceOf("another", found.of.answers), "", found.values, 1, 1).write(
        fresh / "reference" / "dpo"
    )
    capsys.readouterr()
    run(parse_recipe(recipe, "test"), fresh)
    assert "its reference log-probabilities were of another model, and are computed anew" in " ".join(
        capsys.readouterr().err.split()
    )
    again = Reference.read(fresh / "reference" / "dpo")
    assert again is not None and again.of == found.of
    np.testing.assert_array_equal(again.values, found.values)


def test_a_loss_without_a_reference_computes_none(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(StageReference, "begin", lambda *_: pytest.fail("there is no reference"))
    run(parse_recipe(only_pairs(recipe, loss="simpo"), "test"), tmp_path / "run")
    assert not (tmp_path / "run" / "reference").exists()
    assert metrics(tmp_path / "run")[-1]["held_out_loss"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "trains on preferences, and .*names none"),
        ({"objective": "sft"}, "trains on chats, and .*names none"),
        ({"objective": "pretrain"}, "trains on documents, and .* is preferences"),
        ({"mixture": {"point": [{"weights": {"all": 1}}]}}, "preferences are not mixed"),
        ({"normalise": "chats"}, "normalise is for objective = 'sft', and objective is 'preference'"),
        ({"loss": "simpa"}, "did you mean 'simpo'"),
        ({"gamma": 1.0}, "gamma is for loss = 'simpo', and loss is 'dpo'"),
    ],
)
def test_what_does_not_go_with_pairs_is_refused(recipe, change, message):
    recipe["stage"][1] |= change
    with pytest.raises(UserError, match=message):
        parse_recipe(recipe, "test")


def test_keys_of_a_loss_over_pairs_are_refused_elsewhere(recipe):
    recipe["stage"][0]["beta"] = 0.2
    with pytest.raises(UserError, match="stage 'sft': beta is for objective = 'preference', and objective is 'sft'"):
        parse_recipe(recipe, "test")


def test_preferences_train_no_tokenizer(recipe):
    recipe = only_pairs(recipe)
    del recipe["tokenizer"]
    with pytest.raises(UserError, match="preferences train no tokenizer"):
        parse_recipe(recipe, "test")
