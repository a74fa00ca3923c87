"""The card of a model tells what its files say, in the hub's format, and lists what they do not say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from test_report import step_line

from leyden.checkpoint import convert, save
from leyden.core.errors import UserError
from leyden.evaluate.card import write_card
from leyden.model import HybridLM
from leyden.tokenizer import Tokenizer

ModelMaker = Callable[..., HybridLM]
Cli = Callable[..., Any]
RECIPE = """
name = "small | <b>"
[data]
text = ["books"]
[train]
dtype = "float32"
seed = 7
[[stage]]
name = "read"
objective = "pretrain"
steps = 20
seq_len = 256
"""


@pytest.fixture
def run(random_model: ModelMaker, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 9, vocab_size=262)
    save(random_model(vocab_size=270), tokenizer, folder / "final", layout="transformers")
    (folder / "recipe.toml").write_text(RECIPE)
    lines = [step_line(step, "read", skipped=step == 3) for step in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = [
        {"task": "held_out", "value": 9.0, "stage": "read", "step": 5},
        {"task": "bits_per_byte", "value": 1.875, "baselines": {"xz_4096": 2.25}},
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    data = {"train_documents": 1234, "rejects": {"not UTF-8": 3}, "rejected": [{"file": "x"}] * 3}
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "environment.json").write_text(json.dumps({"cpu": "a|b", "gpus": [], "commit": "abc", "cores": 2}))
    return folder


def test_a_card_of_a_run(run: Path) -> None:
    path = write_card(run, license_name="apache-2.0")
    assert path == run / "final" / "README.md"
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("apache-2.0", "leyden", "text-generation")
    assert "transformers" in data["tags"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("bits_per_byte", 1.875)
    text = card.text
    assert text.splitlines()[2] == r"# small \| \<b\>"
    for said in (
        "| train documents | 1,234 |",
        "Not read or set aside: 3 not UTF-8.",
        "| read | pretrain | 20 | 81,920 | 256 | 3.0500 |",  # the mean of 5 - 0.1 * 19 and 5 - 0.1 * 20
        "1 steps were skipped",
        "dtype = float32, seed = 7",
        "| bits\\_per\\_byte | 1.8750 | not known | not known |",
        "xz\\_4096 2.2500",
        r"| cpu | a\|b |",
        "| commit | abc |",
        "| layers | 3: 2 lightning, 1 softmax |",
    ):
        assert said in text, said
    sums = (run / "final" / "SHA256SUMS").read_text()
    (digest,) = [line.split()[0] for line in sums.splitlines() if line.endswith("model.safetensors")]
    assert digest in text
    unknown = text.partition("## What is not known")[2]
    assert "its license" not in unknown and "which languages" in unknown and "how good" not in unknown


def test_a_card_of_a_model_by_itself_says_what_is_not_known(random_model: ModelMaker, tmp_path: Path) -> None:
    save(random_model(), None, tmp_path / "plain", layout="leyden")
    text = write_card(tmp_path / "plain").read_text()
    unknown = text.partition("## What is not known")[2]
    for said in ("its license", "the run that made it", "what it was trained on", "how good it is", "the machine"):
        assert said in unknown, said
    assert "has no tokenizer" in text and "No evaluation is beside the model" in text
    assert "eval_results" not in text and "model-index" not in text


def test_figures_of_an_evaluation_are_added(run: Path, tmp_path: Path) -> None:
    line = {"task": "niah", "value": 0.9, "interval": [0.8, 0.95], "n": 10, "settings": {"lengths": [512, 1024]}}
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "results.jsonl").write_text(json.dumps(line) + "\n")
    card = ModelCard.load(write_card(run, tmp_path / "card.md", evaluations=[tmp_path / "scores"]))
    assert "| niah | 0.9000 | 0.8000 to 0.9500 | 10 | lengths 512, 1024 |" in card.text
    assert [one.metric_value for one in card.data.eval_results] == [1.875, 0.9]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no figures; name a folder that leyden eval --out wrote"):
        write_card(run, evaluations=[tmp_path / "none"])


def test_a_card_goes_with_its_model_and_no_other_readme_does(run: Path, tmp_path: Path) -> None:
    write_card(run)
    write_card(run)  # over its own
    convert(run, tmp_path / "other", "leyden")
    write_card(tmp_path / "other")
    convert(run, tmp_path / "other", "leyden", replace=True)
    assert not (tmp_path / "other" / "README.md").exists()
    (run / "final" / "README.md").write_text("by hand")
    with pytest.raises(UserError, match=r"was not written by leyden card; give another place \(--out\)"):
        write_card(run)
    assert (run / "final" / "README.md").read_text() == "by hand"
    (tmp_path / "other" / "README.md").write_text("by hand")
    with pytest.raises(UserError, match=r"holds other things than a model \(README.md\)"):
        convert(run, tmp_path / "other", "leyden", replace=True)


def test_a_card_of_a_gguf_file(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "m.gguf", "gguf")
    path = write_card(tmp_path / "m.gguf", tmp_path / "card.md")
    text = path.read_text()
    assert "in the layout `gguf`" in text and "| `m.gguf` | `" in text


def test_broken_files_of_a_run_are_not_known(run: Path) -> None:
    (run / "data.json").write_text("{")
    (run / "environment.json").write_text("[1]")
    (run / "recipe.toml").write_text("= no toml")
    (run / "metrics.jsonl").write_text("")
    text = write_card(run).read_text()
    assert "No file beside the model says what it was trained on." in text
    assert "No metrics of its training are beside the model." in text


def test_the_verb(leyden_cli: Cli, run: Path, tmp_path: Path) -> None:
    outcome = leyden_cli("card", run, "--license", "mit", "--out", tmp_path / "card.md")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'card.md'}\n"), outcome.err
    outcome = leyden_cli("card", tmp_path / "none")
    assert outcome.code == 2 and "does not exist" in outcome.err and "Traceback" not in outcome.err
