"""Studies from plan to verdict with models of a second: resumed, tampered with, planned late, and by other models."""

import json
import os
import random
import re
import shutil
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leyden
from leyden.core.errors import Interrupted, UserError
from leyden.data.token_budget import MatchRepetition
from leyden.model import HybridLM
from leyden.study import train as training
from leyden.study.demo import demo_experiment
from leyden.study.experiment import Experiment, load_experiment
from leyden.study.items import Item, write_items
from leyden.study.null import measure_null, run_null
from leyden.study.plan import make_plan, read_plan
from leyden.study.study import Run, Study
from leyden.study.verdict import give_verdict, run_plan
from leyden.tokenizer import Tokenizer
from leyden.train import read_metrics

SUBJECTS, VERBS, OBJECTS = ["the jar", "a tower", "one cloud"], ["holds", "meets", "fears"], ["rain", "light", "wind"]
TINY = {
    "preset": "tiny",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rotary_dim": 8,
    "intermediate_size": 32,
    "num_local_experts": 0,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of a strict grammar, so that word order is soon learned."""
    folder, rng = tmp_path_factory.mktemp("grammar"), random.Random(0)
    for number in range(60):
        sentences = [
            f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} {rng.randrange(100)} ."
            for _ in range(60)
        ]
        (folder / f"{number:02d}.txt").write_text(" ".join(sentences))
    return folder


@pytest.fixture(scope="module")
def experiment(text: Path) -> Experiment:
    return Experiment.parse(
        {
            "name": "order",
            "hypothesis": "words in order teach order",
            "seeds": 3,
            "pilot_seeds": 2,
            "min_discriminability": 3.0,
            "baseline": {"shuffle_words": 0.6},
            "treatment": {},
            "data": {"text": [str(text)], "vocab_size": 300, "held_out_fraction": 0.2},
            "items": {"per_benchmark": 24, "context_chars": 30, "choice_chars": 24},
            "train": {"steps": 30, "batch_tokens": 1024, "seq_len": 256, "lr": 2e-2, "model": TINY},
        },
        "test",
    )


@pytest.fixture(scope="module")
def finished(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its plan, its runs and its verdict."""
    directory = tmp_path_factory.mktemp("study") / "order"
    make_plan(experiment, directory)
    run_plan(directory)
    give_verdict(directory)
    return directory


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_planted_defect_is_found(finished: Path) -> None:
    plan, verdict = give_verdict(finished)
    assert "word_order" in plan.weights
    assert all(one.ratio >= 3 for one in plan.discriminability if one.benchmark in plan.weights)
    assert verdict.accepted
    assert verdict.decisive.effect > 0
    assert verdict.sentence.startswith("Accepted: words in order teach order")
    saved = json.loads((finished / "verdict.json").read_text())
    assert saved["plan"] == plan.fingerprint == json.loads((finished / "plan.json").read_text())["fingerprint"]
    assert set(saved["findings"]) == {"geometric", "arithmetic"}


def test_seeds_of_the_variants_and_of_the_pilot_are_all_different(finished: Path) -> None:
    plan = read_plan(Study(finished))
    seeds = [*plan.seeds["baseline"], *plan.seeds["treatment"]]
    pilot = [json.loads(p.read_text())["seed"] for p in (finished / "scores" / "pilot").iterdir()]
    assert len(set(seeds + pilot)) == len(seeds) + len(pilot) == 10


def test_a_run_depends_on_its_seed_alone(finished: Path, copy: Path) -> None:
    again = copy / "scores" / "test" / "treatment-3.json"
    before = again.read_text()
    again.unlink()
    with pytest.raises(UserError, match="treatment with seed 3 has no scores"):
        give_verdict(copy)
    run_plan(copy)
    assert again.read_text() == before
    assert before != (copy / "scores" / "test" / "treatment-4.json").read_text()


def test_an_interrupted_study_goes_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = {path: path.read_bytes() for path in sorted((copy / "scores" / "test").iterdir())}
    for path in list(finished)[:2]:
        path.unlink()
    made = training.train_model

    def stop(*arguments: Any) -> Any:
        if arguments[4] == 1:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(training, "train_model", stop)
    with pytest.raises(Interrupted, match="5 of 6 runs are kept"):
        run_plan(copy)
    monkeypatch.setattr(training, "train_model", made)
    run_plan(copy)
    assert finished == {path: path.read_bytes() for path in sorted((copy / "scores" / "test").iterdir())}


def test_a_run_interrupted_in_its_training_goes_on_bit_for_bit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in step 7 of 30 saves that step; the next call takes the other 23, and comes to the same scores."""
    scores, place = copy / "scores" / "test" / "treatment-4.json", copy / "runs" / "test" / "treatment-4"
    expected = scores.read_bytes()
    scores.unlink()
    made, told = training.train_model, list[float]()

    def stop(*arguments: Any) -> Any:
        *others, tell = arguments

        def tell_and_stop(share: float) -> None:
            told.append(share)
            tell(share)
            if len(told) == 7:
                os.kill(os.getpid(), signal.SIGINT)

        return made(*others, tell_and_stop)

    monkeypatch.setattr(training, "train_model", stop)
    with pytest.raises(Interrupted, match="5 of 6 runs are kept"):
        run_plan(copy)
    assert [path.name for path in (place / "checkpoints").iterdir()] == ["step_00000007"]
    run_plan(copy)
    assert scores.read_bytes() == expected
    assert len(told) == 7 + 23 + 1
    assert sum(told[7:]) == pytest.approx(1)
    assert [record["step"] for record in read_metrics(place / "metrics.jsonl")] == list(range(1, 31))
    assert not (place / "checkpoints").exists()


def test_a_run_whose_loss_is_not_finite_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "scores" / "test" / "treatment-4.json").unlink()
    made = training.train_model
    high = Study(copy).experiment.train.model_copy(update={"lr": 1e30})
    monkeypatch.setattr(training, "train_model", lambda _, *rest: made(high, *rest))
    with pytest.raises(UserError, match=r"seed 4: the loss is not finite at step \d+; lower train\.lr"):
        run_plan(copy)


def test_a_plan_changed_after_the_runs_is_refused(copy: Path) -> None:
    edit(copy / "plan.json", lambda plan: plan.update(alpha=0.2))
    for act in (give_verdict, run_plan):
        with pytest.raises(UserError, match="changed after it was written"):
            act(copy)


def test_a_changed_plan_with_its_own_fingerprint_does_not_fit_the_runs(copy: Path) -> None:
    from dataclasses import replace

    other = replace(read_plan(Study(copy)), alpha=0.2)
    edit(copy / "plan.json", lambda plan: plan.update(alpha=0.2, fingerprint=other.fingerprint))
    with pytest.raises(UserError, match="was not made under this plan"):
        give_verdict(copy)


def test_results_without_a_plan_are_not_read(copy: Path, experiment: Experiment) -> None:
    (copy / "plan.json").unlink()
    with pytest.raises(UserError, match="results may be read with a plan alone"):
        give_verdict(copy)
    with pytest.raises(UserError, match="written after its results decides nothing"):
        make_plan(experiment, copy)
    (copy / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        give_verdict(copy)


def test_items_scores_and_data_that_were_changed(copy: Path) -> None:
    scores = copy / "scores" / "test" / "baseline-0.json"
    edit(scores, lambda record: record.update(seed=1))
    with pytest.raises(UserError, match="is of another study"):
        give_verdict(copy)
    edit(scores, lambda record: (record.update(seed=0), record["log_likelihoods"].pop()))
    with pytest.raises(UserError, match="do not fit the items"):
        give_verdict(copy)
    scores.unlink()
    shutil.rmtree(copy / "data" / "baseline")
    shutil.copytree(copy / "data" / "obvious", copy / "data" / "baseline")
    with pytest.raises(UserError, match="changed after the study began"):
        run_plan(copy)
    lines = (copy / "items.jsonl").read_text().splitlines(keepends=True)
    (copy / "items.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match=r"items\.jsonl was changed after the study began"):
        give_verdict(copy)


def test_another_experiment_in_the_same_place(finished: Path, experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a study of other settings"):
        make_plan(experiment.model_copy(update={"alpha": 0.01}), finished)
    with pytest.raises(UserError, match="holds no study"):
        give_verdict(tmp_path)


@pytest.mark.slow
def test_null_experiments_on_real_runs(copy: Path) -> None:
    result = run_null(copy, num_runs=6, num_splits=30, num_simulated=50)
    assert set(result.real) == {"crossed", "runs", "items", "permutation"}
    assert result.real["crossed"].value < 0.4
    assert 0 <= result.simulated["crossed"].value < 0.15
    assert 0.6 < result.power["crossed"].value <= 1
    assert json.loads((copy / "null.json").read_text())["num_runs"] == 6
    with pytest.raises(UserError, match="at least 6"):
        run_null(copy, num_runs=5)


def test_null_rates_of_normal_scores(finished: Path) -> None:
    """60 runs from a known normal: about 5 % over splits and simulations, and 80 % power."""
    plan, rng = read_plan(Study(finished)), np.random.default_rng(0)
    table = rng.standard_normal(24) + 0.1 * rng.standard_normal((60, 1)) + 0.3 * rng.standard_normal((60, 24))
    result = measure_null(dict.fromkeys(plan.weights, table), plan, num_splits=300, num_simulated=300)
    assert result.real["crossed"].value == pytest.approx(0.05, abs=0.035)
    assert result.simulated["crossed"].value == pytest.approx(0.05, abs=0.03)
    assert result.power["crossed"].value == pytest.approx(0.8, abs=0.06)
    assert result.real["items"].value > result.real["crossed"].value


def test_seeds_follow_from_the_smallest_effect(experiment: Experiment, copy: Path) -> None:
    changed = experiment.model_copy(update={"seeds": None, "effect": 1.0})
    record = json.loads((copy / "study.json").read_text())
    record["experiment"] = changed.model_dump(mode="json")
    (copy / "study.json").write_text(json.dumps(record))
    shutil.rmtree(copy / "scores")
    (copy / "plan.json").unlink()
    _, plan = make_plan(changed, copy)
    assert plan.seeds == {"baseline": [0, 1], "treatment": [2, 3]}
    assert plan.power_at_effect is not None
    assert plan.power_at_effect >= 0.8
    assert plan.minimum_detectable_effect <= 1.0


def test_runs_that_repeat_otherwise_than_the_full_run(experiment: Experiment, finished: Path, copy: Path) -> None:
    """30 steps of 1024 tokens, over the tokens that there are."""
    plan = read_plan(Study(finished))
    ends = np.fromfile(next((finished / "data" / "baseline").glob("**/*.ends")), "<i8")
    assert plan.epochs["baseline"] == pytest.approx(max(1, 30 * 1024 / ends[-1]))
    for asked, fits in ((1.0, True), (4.0, False)):
        changed = experiment.model_copy(update={"full_epochs": {"baseline": asked}})
        edit(copy / "study.json", lambda record, c=changed: record.update(experiment=c.model_dump(mode="json")))
        (copy / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(copy / "scores", ignore_errors=True)
        if fits:
            make_plan(changed, copy)
        else:
            with pytest.raises(UserError, match=r"the full run 4 times.*match_repetition"):
                make_plan(changed, copy)


def test_models_that_were_trained_elsewhere(random_model: Callable[..., HybridLM], tmp_path: Path) -> None:
    """Random models: nothing to find, but everything is scored; no data is read and no tokenizer trained."""
    tokenizer = Tokenizer.train(["lightning in a jar " * 20], vocab_size=270, allow_smaller=True)
    for seed in (0, 1, 2, 3, 1000, 1001, 1002, 1003):
        leyden.save(random_model(vocab_size=tokenizer.vocab_size, seed=seed), tokenizer, tmp_path / f"m-{seed}")
    rng = random.Random(0)
    items = [
        Item(str(n), "b", "lightning", tuple(f" {rng.choice('abcdefgh')}{n}{i}" for i in range(3)), n % 3)
        for n in range(8)
    ]
    write_items(items, tmp_path / "items.jsonl")
    models = {"models": str(tmp_path / "m-{seed}")}
    given = {"name": "n", "hypothesis": "h", "seeds": 2, "pilot_seeds": 2, "min_discriminability": -1e9}
    given |= {"baseline": models, "treatment": models, "obvious": models, "items": {"path": tmp_path / "items.jsonl"}}
    make_plan(Experiment.parse(given, "test"), tmp_path / "study")
    run_plan(tmp_path / "study")
    plan, verdict = give_verdict(tmp_path / "study")
    assert plan.num_items == {"b": 8}
    assert np.isfinite(verdict.decisive.effect)
    assert not (tmp_path / "study" / "tokenizer").exists()
    (table,) = Study(tmp_path / "study").scores([Run("test", "baseline", 1)], "geometric", plan.fingerprint).values()
    assert table.shape == (1, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": None}, "give seeds, or the smallest effect"),
        ({"seeds": 1}, "greater than or equal to 2"),
        ({"readng": "geometric"}, "did you mean 'reading'"),
        ({"baseline": {"models": "runs/final"}}, "must have {seed} in it"),
        ({"baseline": {"models": "runs/{seed}"}}, "need [items] path"),
        ({"baseline": {"shuffle_words": 2}}, "less than or equal to 1"),
    ],
)
def test_experiments_that_cannot_be(experiment: Experiment, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        Experiment.parse(experiment.model_dump(mode="json") | changes, "test")
    assert says in str(refused.value)


def test_a_variant_s_own_documents_hold_none_that_items_are_from(
    experiment: Experiment, text: Path, tmp_path: Path
) -> None:
    """The same folder as a variant's own: what ``[data]`` holds out is not trained on, whatever is held out there."""
    from leyden.study.study import _documents, _variant

    documents, held_out = _documents(experiment, tmp_path)
    own = experiment.baseline.model_copy(update={"text": (text,), "shuffle_words": 0.0})
    trained = {
        document.text for document in _variant(experiment, own, documents, frozenset(held_out), tmp_path / "own")
    }
    assert len(trained) > 20
    assert held_out
    assert not trained & set(held_out)


def test_the_page_s_examples(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-experiments.md").read_text(encoding="utf-8")
    experiment, stage = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    assert Experiment.parse(experiment, "page").train.model_config_of(1024).hidden_size == 512
    assert MatchRepetition.parse(stage["stage"][0], "page").trial_tokens == 40_000_000_000


def test_an_experiment_s_file(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('name = "n"\nhypothesis = "h"\nseeds = 2\n[baseline]\ntext = ["none"]\n[treatment]\n')
    with pytest.raises(UserError, match=r"\[baseline\] text does not exist: none"):
        load_experiment(path)


def test_the_demonstration_s_settings() -> None:
    full, quick = (demo_experiment(quick=quick) for quick in (False, True))
    assert full.baseline.shuffle_words == 0.5
    assert full.treatment.shuffle_words == 0
    assert quick.train.steps < full.train.steps
