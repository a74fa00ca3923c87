"""The verbs: what they print, what they write, and the codes they end with."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leyden
from leyden.core.errors import Interrupted
from leyden.model import PRESETS, HybridLM
from leyden.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("empty_plots")
Cli = Callable[..., Any]
VERBS = (
    "quickstart",
    "run",
    "info",
    "generate",
    "chat",
    "eval",
    "convert",
    "tokenizer",
    "data",
    "study",
    "bench",
    "prompts",
    "sample",
    "pairs",
    "pivots",
)
TEXT = "The lightning struck the tower, and the tower kept the lightning in a jar.\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"{number} {TEXT}" * 5)
    return folder


@pytest.fixture(scope="module")
def model(random_model: Callable[..., HybridLM], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "model"
    leyden.save(random_model(vocab_size=270), Tokenizer.train([TEXT] * 2, vocab_size=270), directory)
    return directory


def refused(outcome: Any, *says: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    flat = " ".join(outcome.err.replace("│", " ").split())
    assert all(part in flat for part in says), flat


def test_help_names_every_verb_and_is_quick() -> None:
    started = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "leyden", "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert all(f" {verb} " in finished.stdout for verb in VERBS)
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "pydantic", "transformers", "matplotlib"}
    assert time.perf_counter() - started < 20  # a second where nothing else runs


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(leyden_cli: Cli, verb: str) -> None:
    outcome = leyden_cli(verb, "--help")
    assert outcome.code == 0
    assert f"leyden {verb}" in outcome.out


def test_without_a_verb_there_is_help(leyden_cli: Cli) -> None:
    outcome = leyden_cli()
    assert "quickstart" in outcome.out
    assert outcome.code == 2


def test_usage_errors_end_with_2(leyden_cli: Cli) -> None:
    refused(leyden_cli("quickstrt"), "'quickstrt'", "'quickstart'")
    refused(leyden_cli("info"), "a recipe, a model or a preset", "--machine")
    refused(leyden_cli("run", "quickstart", "--resume", "perhaps"), "perhaps", "auto", "never")
    refused(leyden_cli("quickstart", "--minutes", "0"), "--minutes", "0.01")


def test_a_verb_that_another_tool_has_is_answered_with_ours(leyden_cli: Cli) -> None:
    refused(leyden_cli("train"), "No such command 'train'. Did you mean 'run'?")
    refused(leyden_cli("trian"), "Did you mean 'run'?")
    refused(leyden_cli("evaluate"), "Did you mean 'eval'?")
    refused(leyden_cli("nothing-like-it"), "No such command 'nothing-like-it'")


def test_version_short_help_and_completion(leyden_cli: Cli) -> None:
    assert leyden_cli("--version").out == f"leyden {leyden.__version__}\n"
    for arguments in ((), ("info",), ("data",), ("data", "build")):
        assert leyden_cli(*arguments, "-h").out == leyden_cli(*arguments, "--help").out != ""
    assert "--install-completion" in leyden_cli("--help").out


def test_text_takes_several_paths(leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("leyden.recipes.quickstart", lambda **arguments: given.update(arguments))
    assert leyden_cli("quickstart", "--text", "a", "b", "--text", "c", "--minutes", "0.2").code == 0
    assert sorted(map(str, given["text"])) == ["a", "b", "c"]  # pyright: ignore[reportArgumentType]
    assert leyden_cli("quickstart", "a").code == 2


def test_info_of_text_01(leyden_cli: Cli) -> None:
    outcome = leyden_cli("info", "text-01")
    assert (outcome.code, outcome.err) == (0, "")
    rows = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["layers"] == "80 (70 lightning, 10 softmax)"
    assert rows["parameters"] == "456.09B"
    assert rows["active parameters"].startswith("45.94B: attention, router and the 2 experts of a token, without")
    assert rows["lightning state"] == "280 MiB in float32 a sequence, at any length"
    assert rows["keys and values"] == "40,960 bytes in bfloat16 a token"
    assert rows["context of 8,192"] == "600 MiB a sequence"


def test_info_at_another_length_and_shape(leyden_cli: Cli) -> None:
    short, long = (leyden_cli("info", "text-01", "--length", length).out for length in (1024, 1_048_576))
    assert "context of 1,048,576  40.27 GiB a sequence" in long
    assert "context of 1,024   320 MiB a sequence" in short
    assert "prompt of 1,048,576   2.579e+17 FLOPs to the logits of the next token" in long
    halved = leyden_cli("info", "text-01", "--set", "model.num_local_experts=16").out
    assert "active parameters  45.9" in halved
    assert "456.09B" not in halved


def test_info_of_a_model_with_windows(leyden_cli: Cli) -> None:
    kinds = '["linear_attention", "sliding_attention", "full_attention", "sliding_attention"]'
    settings = (f"model.layer_types={kinds}", "model.num_hidden_layers=4", "model.sliding_window=1024")
    out = leyden_cli("info", "tiny", *(part for setting in settings for part in ("--set", setting))).out
    assert "4 (1 lightning, 2 sliding-window, 1 softmax)" in out
    assert (
        "1 MiB in bfloat16 a sequence, at 1,024 tokens and at any length beyond" in out
    )  # 2 x 1024 x 2 x 128 x 2 bytes
    assert "512 bytes in bfloat16 a token" in out


def test_info_of_a_model_with_another_router(leyden_cli: Cli) -> None:
    changes = ("router='sigmoid_groups'", "n_group=4", "topk_group=2", "routed_scaling_factor=2.5")
    out = leyden_cli("info", "tiny", *(part for change in changes for part in ("--set", f"model.{change}"))).out
    said = "2 of 8 experts by sigmoid scores and a bias, in 2 of 4 groups; weights are their shares times 2.5"
    assert f"router {said}" in " ".join(out.split())


def test_info_of_a_model_with_several_kinds_of_states(leyden_cli: Cli) -> None:
    kinds = '["linear_attention", "cosformer2_attention", "hgrn2_attention", "cosformer2_attention"]'
    settings = ("--set", f"model.layer_types={kinds}", "--set", "model.num_hidden_layers=4")
    out = " ".join(leyden_cli("info", "tiny", *settings).out.split())
    assert "4 (1 lightning, 2 cosFormer2, 1 HGRN2)" in out
    assert "lightning state 64 KiB in float32 a sequence" in out  # 4 heads x 64 x 64 x 4 bytes
    assert "cosFormer2 state 128 KiB in float32 a sequence" in out
    assert "HGRN2 state 64 KiB in float32 a sequence" in out


@pytest.mark.parametrize("name", PRESETS)
def test_info_of_every_preset(leyden_cli: Cli, name: str) -> None:
    assert leyden_cli("info", name).code == 0


def test_info_of_a_recipe_and_of_a_model(leyden_cli: Cli, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text("[model]\npreset = 'tiny'\n[[stage]]\nname = 'a'\nobjective = 'pretrain'\nsteps = 1\n")
    assert leyden_cli("info", recipe).out == leyden_cli("info", "tiny").out
    assert leyden_cli("info", "quickstart").code == 0
    assert "3 (2 lightning, 1 softmax)" in leyden_cli("info", model).out
    refused(leyden_cli("info", model, "--set", "model.head_dim=4"), "cannot be changed by --set")


def test_info_of_nothing(leyden_cli: Cli) -> None:
    refused(leyden_cli("info", "text-1"), "neither a recipe, a model's directory nor", "did you mean 'text-01'")
    refused(leyden_cli("info", "tiny", "--set", "model.hed_dim=4"), "did you mean 'head_dim'")
    refused(leyden_cli("info", "tiny", "--set", "train.seed=4"), "--set on a preset changes model.FIELD")


def test_a_tokenizer_is_trained_and_used(leyden_cli: Cli, text: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    outcome = leyden_cli("tokenizer", "train", text, "--dir", directory, "--vocab-size", 280)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{directory} holds a tokenizer of 280 tokens\n"
    tokenizer = Tokenizer.load(directory)
    for arguments, stdin in (((TEXT,), ""), ((), TEXT)):
        ids = leyden_cli("tokenizer", "encode", directory, *arguments, stdin=stdin).out
        assert [int(number) for number in ids.split()] == tokenizer.encode(TEXT)
    assert len(tokenizer.encode(TEXT)) < len(TEXT)


def test_a_tokenizer_is_written_over_none_but_its_own(leyden_cli: Cli, text: Path, model: Path, tmp_path: Path) -> None:
    train = ("tokenizer", "train", text, "--vocab-size", 262, "--dir")
    before = (model / "tokenizer.json").read_bytes()
    refused(leyden_cli(*train, model), "holds no tokenizer that `leyden tokenizer train` made", "another --dir")
    assert (model / "tokenizer.json").read_bytes() == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tokenizer.json").write_text("{}")
    refused(leyden_cli(*train, tmp_path / "folder"), "another --dir")
    (tmp_path / "mine" / "report").mkdir(parents=True)
    (tmp_path / "mine" / "report" / "index.html").write_text("my page")
    refused(leyden_cli("tokenizer", "report", model, text, "--output", tmp_path / "mine" / "report"), "no page that")
    assert (tmp_path / "mine" / "report" / "index.html").read_text() == "my page"
    for _ in range(2):
        assert leyden_cli(*train, tmp_path / "new").code == 0


def test_a_tokenizer_that_cannot_be(leyden_cli: Cli, text: Path, tmp_path: Path) -> None:
    train = ("tokenizer", "train", text, "--dir", tmp_path / "tokenizer", "--vocab-size")
    refused(leyden_cli(*train, 100), "A vocabulary of 100 is too small")
    refused(leyden_cli(*train, 5000), "The text supports a vocabulary of", "not of 5000")
    refused(leyden_cli("tokenizer", "encode", tmp_path / "none", "x"), "tokenizer.json")
    assert not (tmp_path / "tokenizer").exists()


def test_a_model_goes_through_every_layout_and_back(leyden_cli: Cli, model: Path, tmp_path: Path) -> None:
    places = [model, *(tmp_path / name for name in ("transformers", "minimax", "leyden"))]
    for source, target in zip(places, places[1:], strict=False):
        outcome = leyden_cli("convert", source, target, "--layout", target.name)
        assert outcome.code == 0, outcome.err
        assert outcome.out == f"{source} is in {target}, in the {target.name} layout\n"
    first, last = leyden.load(model)[0], leyden.load(places[-1])[0]
    assert first.config == last.config
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, last.state_dict()[name]), name


def test_a_conversion_that_cannot_be(leyden_cli: Cli, model: Path, tmp_path: Path) -> None:
    refused(leyden_cli("convert", model, tmp_path / "out", "--layout", "onnx"), "'onnx' is not one of")
    refused(leyden_cli("convert", model, tmp_path / "out", "--layout", "gguf"), "name that ends in .gguf")
    refused(leyden_cli("convert", tmp_path / "none", tmp_path / "out", "--layout", "leyden"), "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    refused(leyden_cli("convert", model, tmp_path / "full", "--layout", "leyden"), "letter.txt", "give a new directory")
    assert not (tmp_path / "out").exists()


def test_eval_says_bits_per_byte_beside_xz(leyden_cli: Cli, model: Path, text: Path) -> None:
    outcome = leyden_cli("eval", model, "--task", "bits_per_byte", "--text", text)
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["documents"] == 3
    assert record["bytes"] == sum(path.stat().st_size for path in text.iterdir())
    assert record["value"] > 0
    assert set(record["baselines"]) == {"xz_4096", "xz_documents"}
    refused(leyden_cli("eval", model, "--task", "bits", "--text", text), "task 'bits' is unknown", "bits_per_byte")


def test_eval_keeps_rows_and_draws_pages(leyden_cli: Cli, model: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("eval", model, "--task", "niah", "--lengths", "512,600", "--depths", "2", "--text", text)
    for name in ("one", "other"):
        outcome = leyden_cli(*arguments, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        record = json.loads(outcome.out)
        assert (record["task"], record["n"]) == ("niah", 4)
        assert (tmp_path / name / "index.html").is_file()
    folders = ("--compare", tmp_path / "one", tmp_path / "other")
    outcome = leyden_cli("eval", *folders, "--out", tmp_path / "both")
    assert outcome.out.strip() == str(tmp_path / "both" / "index.html")
    refused(leyden_cli("eval", *folders), "--out DIR")
    refused(leyden_cli("eval", *folders, "--out", tmp_path / "both", "--task", "niah"), "leave out --task")
    refused(leyden_cli("eval", "--compare", model, "--out", tmp_path / "both"), "has no results.jsonl")
    refused(leyden_cli("eval", model, model, "--task", "niah"), "one model")
    refused(leyden_cli("eval", "--task", "niah"), "--endpoint URL")
    refused(leyden_cli("eval", model), "--task")
    refused(leyden_cli("eval", model, "--task", "niah", "--lengths", "1q"), "'1q' is no length")
    refused(leyden_cli("eval", model, "--task", "mqar", "--pairs", "4,x"), "'x' is no number of pairs")
    refused(leyden_cli("eval", "--endpoint", "http://127.0.0.1:9/v1", "--task", "niah"), "--tokenizer MODEL")


def test_a_prompt_longer_than_the_model_s_positions(
    leyden_cli: Cli, random_model: Callable[..., HybridLM], tmp_path: Path
) -> None:
    short = random_model(vocab_size=270, max_position_embeddings=16)
    leyden.save(short, Tokenizer.train([TEXT] * 2, vocab_size=270), tmp_path / "short")
    refused(leyden_cli("generate", tmp_path / "short", TEXT * 3), "16")


def test_a_model_that_is_not_there(leyden_cli: Cli, text: Path, tmp_path: Path) -> None:
    for verb, *options in (["generate", "x"], ["chat"], ["eval", "--task", "bits_per_byte", "--text", text]):
        refused(leyden_cli(verb, tmp_path / "none", *options), str(tmp_path / "none"))


def test_what_is_saved_ends_with_130(leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted("Stopped after step 3; everything is saved. To go on: ...")

    monkeypatch.setattr("leyden.recipes.run", stop)
    outcome = leyden_cli("run", "quickstart")
    assert outcome.code == 130
    assert outcome.err == "Stopped after step 3; everything is saved. To go on: ...\n"


def test_ctrl_c_ends_any_verb_with_130(leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leyden.recipes.describe", stop)
    outcome = leyden_cli("info", "tiny")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_a_defect_keeps_its_traceback(leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("leyden.recipes.describe", fail)
    with pytest.raises(ZeroDivisionError):
        leyden_cli("info", "tiny")


@pytest.mark.parametrize("asked", [["--version"], pytest.param(["info", "tiny"], marks=pytest.mark.slow)])
def test_a_reader_that_goes_away_is_no_error(asked: list[str]) -> None:
    """The second imports what takes seconds."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "leyden", *asked]
    finished = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (1, "")
