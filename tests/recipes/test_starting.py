"""``[model] from``: a run goes on with a model in any layout, from its loss; what does not fit is refused."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from whole_runs import after_step, interrupt, metrics

import leyden
from leyden.checkpoint import convert, read_config
from leyden.checkpoint.starting_model import StartingModel
from leyden.checkpoint.training import newest_values
from leyden.core.config import dump_toml
from leyden.core.errors import UserError
from leyden.model import ModelConfig, Rope, RopeScaling
from leyden.recipes import load_recipe
from leyden.recipes.batches import make_batches
from leyden.recipes.loader import parse_recipe
from leyden.recipes.prepare import read_prepared
from leyden.recipes.vocabulary import check_extends
from leyden.tokenizer import Tokenizer
from leyden.train import RunSettings

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
STAGE = {"name": "more", "objective": "pretrain", "steps": 3, "seq_len": 64, "batch_tokens": 128, "lr": 1e-3}
Cli = Callable[..., Any]


def recipe_of(model: Path | str, recipe_file: Path, **changes: Any) -> dict[str, Any]:
    """Three steps on the text of the small recipe."""
    text = tomllib.loads(recipe_file.read_text())["data"]
    train = {"dtype": "float32", "checkpoint_steps": 2}
    return {"model": {"from": str(model)}, "data": text, "train": train, "stage": [STAGE], **changes}


def write(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(dump_toml(recipe))
    return path


@pytest.fixture(scope="module")
def layouts(finished: Path) -> dict[str, Path]:
    """The model of the finished run in every form that a MODEL has; a checkpoint of it has the same weights."""
    found = {"run": finished, "checkpoint": max((finished / "checkpoints").iterdir())}
    for layout in ("leyden", "transformers", "minimax"):
        found[layout] = finished.parent / f"as-{layout}"
        convert(finished / "final", found[layout], layout)
    return found


@pytest.fixture(scope="module")
def begun(layouts: dict[str, Path], recipe_file: Path, leyden_cli: Cli) -> tuple[Path, str]:
    """The run that began from the ``leyden`` layout, and what it said."""
    directory = recipe_file.parent / "begun"
    recipe = write(recipe_file.parent / "begun.toml", recipe_of(layouts["leyden"], recipe_file))
    outcome = leyden_cli("run", recipe, "--dir", directory)
    assert outcome.code == 0, outcome.err
    return directory, outcome.err


def test_the_first_loss_is_that_of_the_model(begun: tuple[Path, str], layouts: dict[str, Path]) -> None:
    """In float64, from logits of the whole row; the recipe of the earlier run has another RoPE base by its end."""
    directory, _ = begun
    recipe = load_recipe(str(directory / "recipe.toml"))
    batch = make_batches(recipe, 0, read_prepared(recipe, directory)).batch(0)
    model, tokenizer = leyden.load(layouts["leyden"])
    assert model.config.rope_theta == recipe.model.rope_theta == 80_000
    with torch.no_grad():
        log_p = model.double()(batch.tokens, cu_seqlens=batch.cu_seqlens)[0].log_softmax(-1)
    valid = batch.labels[0] >= 0
    nats = -log_p[valid].gather(1, batch.labels[0][valid][:, None]).mean()
    assert metrics(directory)[0]["loss"] == pytest.approx(float(nats), rel=1e-6)
    assert float(nats) < 0.95 * torch.tensor(500.0).log(), "the model has learned, and initial weights have not"
    assert tokenizer is not None
    assert Tokenizer.load(directory / "tokenizer").fingerprint == tokenizer.fingerprint
    assert torch.isfinite(leyden.load(directory)[0].embed_tokens.weight).all()


@pytest.mark.parametrize("form", ["run", "checkpoint", "minimax"])
def test_every_form_of_a_model_gives_the_same_run(
    form: str, layouts: dict[str, Path], begun: tuple[Path, str], recipe_file: Path, tmp_path: Path, leyden_cli: Cli
) -> None:
    """A run stands for its ``final``, which is in the layout of transformers."""
    recipe = recipe_of(layouts[form], recipe_file)
    if form == "minimax":  # config.json of that layout does not say the losses of routers as we do
        shape = leyden.load(layouts["leyden"])[0].config
        recipe["model"] |= {"router_aux_loss": shape.router_aux_loss, "rope_theta": shape.rope_theta}
    outcome = leyden_cli("run", write(tmp_path / "r.toml", recipe), "--dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert metrics(tmp_path / "run") == metrics(begun[0])
    ours, theirs = (load_file(d / "final" / "model.safetensors") for d in (tmp_path / "run", begun[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_checkpoints_say_what_the_run_began_from(begun: tuple[Path, str], layouts: dict[str, Path]) -> None:
    noted = json.loads((begun[0] / "from.json").read_text())
    assert newest_values(begun[0])["began_from"] == noted
    assert noted["model"] == noted["directory"] == str(layouts["leyden"])
    assert noted["fingerprint"] == StartingModel.find(str(layouts["leyden"])).fingerprint


def test_what_is_kept_changed_and_new_is_said(
    begun: tuple[Path, str], layouts: dict[str, Path], recipe_file: Path, tmp_path: Path, leyden_cli: Cli
) -> None:
    assert f"the run begins from {layouts['leyden']} (leyden, float32)" in begun[1]
    recipe = recipe_of(layouts["run"], recipe_file)
    recipe["model"] |= {"rope_theta": 5e5, "capacity_factor": 1.25}
    outcome = leyden_cli("run", write(tmp_path / "r.toml", recipe), "--dir", tmp_path / "run", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert f"begins from {layouts['run'] / 'final'} (transformers, bfloat16). Kept: its " in outcome.err
    assert "its tokenizer of 500 tokens" in outcome.err
    assert "Changed: rope_theta 80000.0 -> 500000.0, capacity_factor none -> 1.25." in outcome.err
    assert "New: the optimizer's moments, the counters" in outcome.err
    said = tomllib.loads(outcome.out)
    assert said["model"]["from"] == str(layouts["run"])
    assert (said["model"]["rope_theta"], said["model"]["hidden_size"]) == (5e5, 32)
    assert "tokenizer" not in said
    assert not (tmp_path / "run").exists()


def test_stages_extend_the_context(
    layouts: dict[str, Path], recipe_file: Path, tmp_path: Path, leyden_cli: Cli
) -> None:
    """The second stage by YaRN and a larger base; a fork of its end keeps both, and a later stage ends the scaling."""
    recipe = recipe_of(layouts["run"], recipe_file)
    recipe["model"] |= {"max_position_embeddings": 2**22}
    longer = STAGE | {"name": "longer", "seq_len": 128, "steps": 2, "rope_theta": 1e6, "rope_scaling": YARN}
    recipe["stage"] = [STAGE, longer]
    path = write(tmp_path / "r.toml", recipe)
    told = leyden_cli("run", path, "--dir", tmp_path / "run", "--dry-run")
    assert "Changed: max_position_embeddings 1048576 -> 4194304." in told.err
    outcome = leyden_cli("run", path, "--dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    config = read_config(tmp_path / "run")
    assert config.rope == Rope(1e6, RopeScaling.parse(YARN, "YaRN"))
    assert config.max_position_embeddings == 2**22
    info = leyden_cli("info", tmp_path / "run").out
    assert "4,194,304; RoPE on 8 dims, base 1,000,000, yarn (factor 4, original_max_position_embeddings 64)" in info
    plain = STAGE | {"name": "plain", "steps": 1, "rope_scaling": {"rope_type": "default"}}
    fork = write(tmp_path / "f.toml", recipe | {"stage": [STAGE, longer, plain]})
    outcome = leyden_cli("run", fork, "--dir", tmp_path / "fork", "--from", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert read_config(tmp_path / "fork").rope == Rope(1e6)


def test_an_interrupted_run_goes_on_without_its_model_bit_for_bit(
    begun: tuple[Path, str],
    layouts: dict[str, Path],
    recipe_file: Path,
    tmp_path: Path,
    leyden_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Path(shutil.copytree(layouts["leyden"], tmp_path / "model"))
    command = ("run", write(tmp_path / "r.toml", recipe_of(model, recipe_file)), "--dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        after_step(patch, 1, interrupt)
        assert leyden_cli(*command).code == 130
    shutil.rmtree(model)
    again = leyden_cli("run", tmp_path / "run" / "recipe.toml", *command[2:])
    assert again.code == 0, again.err
    assert metrics(tmp_path / "run") == metrics(begun[0])
    ours, theirs = (load_file(d / "final" / "model.safetensors") for d in (tmp_path / "run", begun[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert newest_values(tmp_path / "run")["began_from"]["model"] == str(model)


def test_a_model_that_changed_before_the_first_checkpoint_is_refused(
    layouts: dict[str, Path], recipe_file: Path, tmp_path: Path, leyden_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(layouts["leyden"], tmp_path / "model"))
    path = write(tmp_path / "r.toml", recipe_of(model, recipe_file))

    def fail(*_: object, **__: object) -> None:
        raise UserError("before the first step")

    with monkeypatch.context() as patch:
        patch.setattr("leyden.recipes.stages.build_state", fail)
        assert "before the first step" in leyden_cli("run", path, "--dir", tmp_path / "run").err
    tensors = load_file(model / "model.safetensors")
    tensors["norm.weight"] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (model / "SHA256SUMS").unlink()
    outcome = leyden_cli("run", path, "--dir", tmp_path / "run")
    assert outcome.code == 2
    assert "has other weights than when" in outcome.err
    other = leyden_cli("run", write(path, recipe_of(layouts["run"], recipe_file)), "--dir", tmp_path / "run")
    assert other.code == 2
    assert "model.from is" in other.err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"hidden_size": 64}}, ["hidden_size is 32 there and 64 here", "Leave it out", "rope_theta"]),
        ({"model": {"vocab_size": 488}}, ["vocab_size is 500 there and 488 here", "vocab_size may grow"]),
        ({"model": {"new_rows": "zero"}}, ["'new_rows': must be 'mean' or 'normal'"]),
        (
            {"model": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}},
            ["'rope_scaling': rope_type 'yarn' needs original_max_position_embeddings"],
        ),
        (
            {"model": {"max_position_embeddings": 32}},
            ["seq_len (64) exceeds the model's max_position_embeddings (32)", "model.max_position_embeddings = 64"],
        ),
        (
            {"model": {"rope_scaling": YARN | {"original_max_position_embeddings": 2**21}}},
            ["original_max_position_embeddings is 2097152", "has 1048576 positions"],
        ),
        ({"model": {"num_local_experts": 8, "head_dim": 8}}, ["num_local_experts is 4 there", "Leave them out"]),
        ({"model": {"postnorm": False}}, ["postnorm is True there and False here"]),
        ({"model": {"preset": "tiny"}}, ["hidden_size is 32 there and 256 here", "Leave them out"]),
        ({"model": {"rope_teta": 1e6}}, ["unknown key 'rope_teta'; did you mean 'rope_theta'?"]),
        ({"model": {"from": 3}}, ["model.from must name a model", "given 3"]),
        ({"model": {"from": "no/such/model"}}, ["no/such/model does not exist", "give a model's directory"]),
        ({"tokenizer": {"vocab_size": 600}}, ["[tokenizer] vocab_size", "Leave [tokenizer] out"]),
        ({"stage": [{**STAGE, "seq_len": 64, "steps": None}]}, ["stage 'more' has no length"]),
        ({"starts_from": "x"}, ["unknown key 'starts_from'", "[model] from"]),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], says: list[str], layouts: dict[str, Path], recipe_file: Path
) -> None:
    recipe = recipe_of(layouts["run"], recipe_file)
    recipe = {
        key: {**recipe.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()
    } | {key: value for key, value in recipe.items() if key not in changes}
    with pytest.raises(UserError) as refused:
        parse_recipe(recipe, "mine.toml")
    message = str(refused.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_another_tokenizer_is_refused(layouts: dict[str, Path], recipe_file: Path, tmp_path: Path) -> None:
    Tokenizer.train(["to be or not to be"] * 2, vocab_size=264).save(tmp_path / "other")
    Tokenizer.load(layouts["leyden"]).save(tmp_path / "same")
    recipe = recipe_of(layouts["run"], recipe_file, tokenizer={"path": str(tmp_path / "same")})
    assert parse_recipe(recipe, "mine.toml").model.vocab_size == 500
    with pytest.raises(
        UserError, match=r"tokenizer of .*other is another than that of model\.from.*: token \d+ is '.*' there and"
    ):
        parse_recipe(recipe | {"tokenizer": {"path": str(tmp_path / "other")}}, "mine.toml")


def test_a_model_without_a_tokenizer_needs_one(layouts: dict[str, Path], recipe_file: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(layouts["leyden"], tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    recipe = recipe_of(bare, recipe_file)
    with pytest.raises(UserError, match=r"has no tokenizer\.json beside its weights.*tokenizer\.path"):
        parse_recipe(recipe, "mine.toml")
    with_one = recipe | {"tokenizer": {"path": str(layouts["leyden"])}}
    assert parse_recipe(with_one, "mine.toml").starts_from == str(bare)


@pytest.fixture(scope="module")
def larger(layouts: dict[str, Path]) -> Path:
    """The model's tokenizer with seven tokens behind its own."""
    backend = Backend.from_file(str(layouts["leyden"] / "tokenizer.json"))
    assert backend.add_tokens([f"<word {number}>" for number in range(7)]) == 7
    directory = Path(shutil.copytree(layouts["leyden"], layouts["leyden"].parent / "larger"))
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("new_rows", ["mean", "normal"])
def test_a_larger_tokenizer_gives_the_model_rows(
    layouts: dict[str, Path], larger: Path, recipe_file: Path, tmp_path: Path, leyden_cli: Cli, new_rows: str
) -> None:
    recipe = recipe_of(layouts["run"], recipe_file, tokenizer={"path": str(larger)})
    recipe["model"] |= {"new_rows": new_rows}
    recipe["stage"] = [STAGE | {"lr": 1e-9, "steps": 1}]
    command = ("run", write(tmp_path / "r.toml", recipe), "--dir", tmp_path / "run")
    told = leyden_cli(*command, "--dry-run")
    assert told.code == 0, told.err
    drawn = {"mean": "each the mean of those that the model has", "normal": "drawn as those of a new model"}[new_rows]
    said = " ".join(told.err.split())
    assert "the ids of its 500 tokens. Changed: vocab_size 500 -> 507. New: 7 tokens behind them, 7 rows of" in said
    assert f"the embedding and the output projection, {drawn}, the optimizer's moments" in said
    model = tomllib.loads(told.out)["model"]
    assert (model["vocab_size"], model["new_rows"]) == (507, new_rows)
    outcome = leyden_cli(*command)
    assert outcome.code == 0, outcome.err
    before = leyden.load(layouts["checkpoint"])[0].state_dict()
    trained, tokenizer = leyden.load(tmp_path / "run")
    assert tokenizer is not None and tokenizer.vocab_size == 507
    for name in ("embed_tokens.weight", "lm_head.weight"):
        now = trained.state_dict()[name]
        torch.testing.assert_close(now[:500], before[name], rtol=0, atol=1e-6)
        mean = before[name].double().mean(0).float()
        assert torch.allclose(now[500:], mean.expand(7, -1), rtol=0, atol=1e-6) == (new_rows == "mean")
        assert now[500:].std(0).max() < 1e-6 or new_rows == "normal"


def test_a_tokenizer_that_is_no_larger_one_is_refused(
    layouts: dict[str, Path], larger: Path, recipe_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"has 500 of its 507 tokens"):
        check_extends("m", Tokenizer.load(larger), "here", Tokenizer.load(layouts["leyden"]))
    backend = Backend.from_file(str(layouts["leyden"] / "tokenizer.json"))
    backend.normalizer = normalizers.NFC()
    (tmp_path / "otherwise").mkdir()
    backend.save(str(tmp_path / "otherwise" / "tokenizer.json"))
    recipe = recipe_of(layouts["leyden"], recipe_file, tokenizer={"path": str(tmp_path / "otherwise")})
    with pytest.raises(UserError, match="has the same tokens, and splits text into others"):
        parse_recipe(recipe, "mine.toml")


def test_a_build_of_another_tokenizer_is_refused(layouts: dict[str, Path], recipe_file: Path, built: Path) -> None:
    recipe = recipe_of(layouts["run"], recipe_file, data={"build": str(built)})
    with pytest.raises(UserError, match=r"the tokenizer of .*build is another than .*: token \d+ is"):
        parse_recipe(recipe, "mine.toml")


def test_a_missing_tensor_is_refused_before_anything_is_made(
    layouts: dict[str, Path], recipe_file: Path, tmp_path: Path, leyden_cli: Cli
) -> None:
    torn = Path(shutil.copytree(layouts["leyden"], tmp_path / "torn"))
    tensors = load_file(torn / "model.safetensors")
    del tensors["layers.1.self_attn.o_proj.weight"]
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})
    outcome = leyden_cli("run", write(tmp_path / "r.toml", recipe_of(torn, recipe_file)), "--dir", tmp_path / "run")
    assert outcome.code == 2
    assert "does not hold the model its config.json describes: 1 missing: layers.1.self_attn.o_proj" in outcome.err
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_refused(
    layouts: dict[str, Path], recipe_file: Path, tmp_path: Path, leyden_cli: Cli
) -> None:
    damaged = Path(shutil.copytree(layouts["leyden"], tmp_path / "damaged"))
    with (damaged / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))
    outcome = leyden_cli("run", write(tmp_path / "r.toml", recipe_of(damaged, recipe_file)), "--dir", tmp_path / "run")
    assert outcome.code == 2
    assert "model.safetensors: not what was written there by SHA256SUMS" in outcome.err


def test_weights_of_a_fork_are_not_those_of_another_model(
    finished: Path,
    layouts: dict[str, Path],
    begun: tuple[Path, str],
    recipe_file: Path,
    tmp_path: Path,
    leyden_cli: Cli,
) -> None:
    recipe = write(tmp_path / "r.toml", recipe_of(layouts["leyden"], recipe_file))
    fork = ("run", recipe, "--dir", tmp_path / "fork", "--from")
    refused = leyden_cli(*fork, f"{finished}@4")
    assert refused.code == 2
    assert "names others; leave one of them out" in refused.err
    outcome = leyden_cli(*fork, f"{begun[0]}@2")
    assert outcome.code == 0, outcome.err
    assert metrics(tmp_path / "fork") == metrics(begun[0])
    assert newest_values(tmp_path / "fork")["began_from"]["model"] == str(layouts["leyden"])


def test_a_model_in_float32_stays_so_and_one_in_16_bits_follows_the_machine(layouts: dict[str, Path]) -> None:
    assert StartingModel.find(str(layouts["run"])).dtype == torch.bfloat16, "what the run computed in"
    assert StartingModel.find(str(layouts["checkpoint"])).dtype == torch.bfloat16
    assert StartingModel.find(str(layouts["leyden"])).dtype == torch.float32
    assert RunSettings().settled(torch.float32).dtype == "float32"
    assert RunSettings().settled(torch.bfloat16).dtype == RunSettings().settled().dtype


def test_a_written_shape_is_read_without_its_model() -> None:
    shape = {**ModelConfig(vocab_size=500).model_dump(mode="json", exclude_none=True), "from": "gone/model"}
    recipe = {"model": shape, "stage": [STAGE]}
    parsed = parse_recipe(recipe, "recipe.toml")
    assert (parsed.starts_from, parsed.model.vocab_size) == ("gone/model", 500)
    with pytest.raises(UserError, match="gone/model"):
        parse_recipe({"model": {"from": "gone/model", "rope_theta": 1e6}, "stage": [STAGE]}, "recipe.toml")
