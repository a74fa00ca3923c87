"""Reward models: the loss, the score at the last token, the files, and what grades by them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_model import SMALL, scored_model

from leyden.align.process_rewards.scorer import LearnedGrader
from leyden.align.reward_models import RewardModelSettings, ScoredPairs
from leyden.align.reward_models.objective import pair_losses
from leyden.align.reward_models.scorer import RewardModel
from leyden.align.rewards.rows import RowSettings, grade_rows
from leyden.align.rollouts.environment import FileEnvironment
from leyden.align.rollouts.settings import RolloutSettings
from leyden.checkpoint import load, save
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("empty_plots")


@pytest.fixture(scope="module")
def model() -> HybridLM:
    return scored_model()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Is it so? Yes, it is so. No, it is not.\n" * 9], vocab_size=270)


@given(
    pairs=st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=5),
    margin=st.sampled_from([0.0, 0.7]),
    weight=st.sampled_from([0.0, 0.1]),
)
@settings(max_examples=30, deadline=None)
def test_the_loss_and_its_gradient_are_their_formulas(pairs, margin, weight):
    scores = torch.tensor(pairs, dtype=torch.float64, requires_grad=True)
    losses = pair_losses(scores, margin=margin, center_weight=weight)
    (gradient,) = torch.autograd.grad(losses.sum(), scores)
    for index, (chosen, rejected) in enumerate(pairs):
        right = 1 / (1 + math.exp(-(chosen - rejected - margin)))
        total = chosen + rejected
        assert losses[index].item() == pytest.approx(-math.log(right) + weight * total**2, rel=1e-9, abs=1e-12)
        assert gradient[index, 0].item() == pytest.approx(right - 1 + 2 * weight * total, rel=1e-9, abs=1e-12)
        assert gradient[index, 1].item() == pytest.approx(1 - right + 2 * weight * total, rel=1e-9, abs=1e-12)


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"score_margin": -1.0}, {"center_weight": math.nan}):
        with pytest.raises(UserError):
            RewardModelSettings.parse(wrong, "test")


def test_a_model_without_a_score_head_has_no_scores(tokenizer):
    plain = HybridLM(ModelConfig.model_validate(SMALL))
    assert "score.weight" not in plain.state_dict()
    with pytest.raises(UserError, match="no score head"):
        plain.scores(torch.zeros(1, 1, 32))
    with pytest.raises(UserError, match="has no score head, and cannot grade"):
        RewardModel(plain, tokenizer, "plain")


@pytest.mark.parametrize("layout", ["leyden", "transformers"])
def test_a_reward_model_is_read_as_it_was_written(model, tokenizer, tmp_path, layout):
    save(model, tokenizer, tmp_path / "m", layout)
    found, _ = load(tmp_path / "m")
    assert found.config == model.config
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())


def test_the_released_layout_has_no_place_for_scores(model, tmp_path):
    with pytest.raises(UserError, match="cannot express score_head = True"):
        save(model, None, tmp_path / "m", "minimax")


def test_transformers_classifies_by_our_scores(model, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    save(model, tokenizer, tmp_path / "m", "transformers")
    classifier = transformers.AutoModelForSequenceClassification
    theirs, report = classifier.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"] and theirs.config.num_labels == 1
    tokens = torch.randint(5, 260, (1, 41), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.scores(model.features(tokens).hidden)[0, -1]
        assert theirs.eval()(tokens).logits[0, 0].item() == pytest.approx(ours.item(), abs=1e-5)


ROWS: list[dict[str, Any]] = [
    {"prompt": "Is it so?", "response": "Yes, it is so."},
    {"prompt": [{"role": "user", "content": "Is it?"}], "response": "No."},
    {"prompt": "", "response": "No prompt."},
    {"prompt": "Is it so?", "response": "Yes. " * 200},
    {"prompt": "Is it so?", "response": "No, it is not."},
]


def test_rows_are_graded_alone_as_together_and_what_cannot_be_is_said(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path / "m", "leyden")
    grader = RewardModel.find(tmp_path / "m")
    found = list(grader.grade_all(ROWS))
    assert "prompt cannot be read" in str(found[2]) and "256 positions" in str(found[3])
    for place in (0, 1, 4):
        together, alone = found[place], grader.grade(ROWS[place])
        assert not isinstance(together, str) and together.reward is not None and alone.reward is not None
        score = together.components["score"]
        assert score is not None
        assert score == pytest.approx(alone.components["score"], abs=1e-5)
        assert together.reward == pytest.approx(1 / (1 + math.exp(-score)))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, ROWS), "{"]), encoding="utf-8")
    graded = list(grade_rows(file, RowSettings("model", model=grader)))
    assert [one.reward is None for one in graded] == [False, False, True, True, False, True]
    assert "line 4: prompt and response have" in graded[3].reason


def test_a_score_that_is_no_number_is_no_reward(tokenizer):
    broken = HybridLM(ModelConfig.model_validate({**SMALL, "score_head": True}))
    with torch.no_grad():
        broken.get_parameter("score.weight").fill_(math.nan)
    found = RewardModel(broken, tokenizer, "broken").grade(ROWS[0])
    assert found.reward is None and "no finite number" in found.reason


def test_reinforcement_learning_is_rewarded_by_it(model, tokenizer, tmp_path):
    save(model, tokenizer, tmp_path / "m", "leyden")
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "Is it so?"}), encoding="utf-8")
    settings = RolloutSettings(prompts=(str(file),), reward="model", reward_model=str(tmp_path / "m"))
    environment = FileEnvironment(settings)
    (row,) = environment.prompts()
    expected = RewardModel(model, tokenizer, "m").grade({**row, "response": "No."})
    assert environment.score(row, "No.").reward == pytest.approx(expected.reward, abs=1e-6)
    with pytest.raises(UserError, match="go together"):
        RolloutSettings.parse({"prompts": [str(file)], "reward": "model"}, "test")


def test_environments_share_what_is_loaded(model, tokenizer, tmp_path, monkeypatch):
    save(model, tokenizer, tmp_path / "m", "leyden")
    find, asked = RewardModel.find, []
    monkeypatch.setattr(RewardModel, "find", lambda name: (asked.append(name), find(name))[1])
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Is it so?"}), encoding="utf-8")
    settings = RolloutSettings(prompts=(str(tmp_path / "p.jsonl"),), reward="model", reward_model=str(tmp_path / "m"))
    first, second = FileEnvironment(settings), FileEnvironment(settings)
    assert not asked  # a run is checked without its weights
    rewards = [one.score({"prompt": "Is it so?"}, "No.") for one in (first, second)]
    assert len(asked) == 1 and rewards[0] == rewards[1]
    save(HybridLM(ModelConfig.model_validate(SMALL)), tokenizer, tmp_path / "plain", "leyden")
    with pytest.raises(UserError, match="no score head"):
        LearnedGrader("model", str(tmp_path / "plain"))


def test_the_best_of_n_by_it_from_the_command_line(model, tokenizer, tmp_path, leyden_cli):
    save(model, tokenizer, tmp_path / "m", "leyden")
    policy = HybridLM(ModelConfig.model_validate({**SMALL, "vocab_size": tokenizer.vocab_size}), seed=1)
    save(policy, tokenizer, tmp_path / "policy", "leyden")
    rows = [{"prompt": "Is it so?", "reference": "1"}, {"prompt": "Yes?", "reference": "2"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    drawn = ["--samples", "3", "--temperature", "1.0", "--max-tokens", "6", "--device", "cpu"]
    asked = ["sample", tmp_path / "policy", tmp_path / "p.jsonl", "--out", tmp_path / "out", *drawn]
    graders = ["--reward-model", tmp_path / "m", "--process-model", tmp_path / "m"]
    leyden_cli(*asked, "--reward", "model:0", "--reward", "process", *graders)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert report["choice"]["least"] == 0 and set(report["reward_models"]) == {"model", "process"}
    for row in samples:
        expected = RewardModel(model, tokenizer, "m").grade(row)
        assert row["components"]["model"] == pytest.approx(expected.reward, abs=1e-6)
        assert "process.least" in row["components"]
    leyden_cli(*asked, "--reward", "math", "--reward", "model", *graders[:2])
    assert json.loads((tmp_path / "out" / "report.json").read_text())["choice"]["least"] == 0.5
    for wrong in (
        ["--reward", "model"],
        ["--reward", "math", *graders[:2]],
        ["--reward", "model", "--reward", "math", *graders[:2]],
    ):
        refused = leyden_cli(*asked, *wrong)
        assert refused.code and ("go together" in refused.err or "no learned reward is 1" in refused.err)


def test_the_objective_scores_last_tokens(model):
    """A pair at a time, each document alone."""
    from leyden.data import Batch

    bounds, groups = [0, 4, 9, 12, 20], torch.tensor([0, 0, 1, 1])
    tokens = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, tokens, torch.tensor(bounds, dtype=torch.int32), groups=groups)
    double = HybridLM(model.config, seed=3).double().eval()
    sums = ScoredPairs(RewardModelSettings(score_margin=0.2, center_weight=0.0)).sums(
        double, double.features(tokens, cu_seqlens=batch.cu_seqlens), batch
    )
    ends = list(zip(bounds, bounds[1:], strict=False))
    scores = [double.scores(double.features(tokens[:, a:b]).hidden)[0, -1].item() for a, b in ends]
    margins = [scores[0] - scores[1], scores[2] - scores[3]]
    assert sums.weight == 2
    assert sums.loss.item() == pytest.approx(sum(math.log1p(math.exp(0.2 - z)) for z in margins), rel=1e-10)
    assert sums.metrics["margin"].item() == pytest.approx(sum(margins), rel=1e-9)
    assert sums.metrics["accuracy"].item() == sum(z > 0 for z in margins)


def test_a_run_trains_it_and_says_how_often_it_is_right_on_pairs_held_out(tmp_path: Path, tokenizer: Tokenizer):
    from leyden.recipes.loader import parse_recipe
    from leyden.recipes.runner import run

    tokenizer.save(tmp_path / "tokenizer")
    rows = [{"prompt": f"Is {n} so?", "chosen": f"Yes, {n} is.", "rejected": f"No, {n} is not."} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shape = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    stage = {"name": "reward", "objective": "reward", "steps": 12, "seq_len": 160, "batch_tokens": 640, "lr": 3e-3}
    recipe = {
        "model": {"preset": "tiny", **shape, "layer_types": list(SMALL["layer_types"])},
        "tokenizer": {"path": str(tmp_path / "tokenizer")},
        "data": {"preferences": [str(tmp_path / "pairs.jsonl")], "held_out_fraction": 0.2},
        "train": {"dtype": "float32"},
        "stage": [stage],
        "evaluate": {"every_steps": 6},
    }
    final = run(parse_recipe(recipe, "test"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["held_out_accuracy"] > 0.9
    grader = RewardModel.find(final)
    yes, no = (
        grader.grade({"prompt": "Is 7 so?", "response": text}).reward for text in ("Yes, 7 is.", "No, 7 is not.")
    )
    assert yes is not None and no is not None and yes > no
