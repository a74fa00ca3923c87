"""A run, a checkpoint of one and a model are each taken for what they are, by every verb that takes a MODEL."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import leyden
from leyden.checkpoint.master_files import MasterFiles
from leyden.core.errors import UserError

Cli = Callable[..., Any]


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """The run without what it came to."""
    hidden = shutil.ignore_patterns("final", "report", "*.jsonl")
    return Path(shutil.copytree(finished, tmp_path / "a run", ignore=hidden))


def test_a_run_is_its_model(finished: Path) -> None:
    (model, tokenizer), (final, _) = leyden.load(finished), leyden.load(finished / "final")
    assert tokenizer is not None
    assert all(map(torch.equal, model.state_dict().values(), final.state_dict().values()))


@pytest.mark.parametrize("place", ["", "checkpoints/step_00000010"])
def test_a_checkpoint_is_its_float32_masters(finished: Path, unfinished: Path, place: str, leyden_cli: Cli) -> None:
    """Those of the last step are what ``final/`` has, RoPE base and tokenizer included."""
    (model, tokenizer), (final, its) = leyden.load(unfinished / place), leyden.load(finished / "final")
    assert model.config == final.config
    assert tokenizer is not None
    assert its is not None
    assert tokenizer.fingerprint == its.fingerprint
    for name, weight in final.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    small, rounded = (leyden.load(one, int8="layers")[0] for one in (unfinished / place, finished / "final"))
    assert all(map(torch.equal, small.state_dict().values(), rounded.state_dict().values()))
    outcome = leyden_cli("generate", unfinished / place, "the light", "--max-tokens", 4, "--temperature", 0)
    assert outcome.code == 0, outcome.err
    same = leyden_cli("generate", finished / "final", "the light", "--max-tokens", 4, "--temperature", 0)
    assert outcome.out == same.out
    assert ("newest checkpoint, step_00000010" in outcome.err) == (not place)


def test_an_earlier_checkpoint_is_exported(unfinished: Path, tmp_path: Path, leyden_cli: Cli) -> None:
    checkpoint = unfinished / "checkpoints" / "step_00000008"
    outcome = leyden_cli("convert", checkpoint, tmp_path / "out", "--layout", "transformers")
    assert outcome.code == 0, outcome.err
    (model, tokenizer), (saved, _) = leyden.load(tmp_path / "out"), leyden.load(checkpoint)
    assert tokenizer is not None
    assert all(map(torch.equal, model.state_dict().values(), saved.state_dict().values()))
    assert leyden_cli("info", checkpoint).out == leyden_cli("info", tmp_path / "out").out
    text = tmp_path / "text.txt"
    text.write_text("the light of a jar")
    scored = leyden_cli("eval", unfinished, "--task", "bits_per_byte", "--text", text)
    assert json.loads(scored.out.splitlines()[0])["task"] == "bits_per_byte", scored.err


def test_what_several_ranks_wrote_is_put_together(unfinished: Path) -> None:
    """One tensor cut in two files, as by two ranks."""
    checkpoint = unfinished / "checkpoints" / "step_00000010"
    whole = MasterFiles(checkpoint)
    name = "layers.0.mlp.experts.gate_up_proj"
    expected = whole[name].clone()
    file = checkpoint / "rank_00000.safetensors"
    tensors = load_file(file)
    cut = tensors.pop(f"master.{name}")
    sizes = list(cut.shape)
    key = f"master.{name}[{{}}:{{}}, 0:{sizes[1]}, 0:{sizes[2]}]"
    save_file(tensors | {key.format(0, 1): cut[:1].clone()}, file)
    save_file({key.format(1, sizes[0]): cut[1:].clone()}, checkpoint / "rank_00001.safetensors")
    index = json.loads((checkpoint / "tensors.json").read_text())
    index[f"master.{name}"]["pieces"] = [
        {"file": "rank_00000.safetensors", "start": [0, 0, 0], "sizes": [1, *sizes[1:]]},
        {"file": "rank_00001.safetensors", "start": [1, 0, 0], "sizes": [sizes[0] - 1, *sizes[1:]]},
    ]
    (checkpoint / "tensors.json").write_text(json.dumps(index))
    joined = MasterFiles(checkpoint)
    assert torch.equal(joined[name], expected)
    assert torch.equal(torch.cat(list(joined.read_rows(name))), expected.flatten(0, -2))


def test_what_is_no_model_says_what_would_be(finished: Path, unfinished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json does not exist; a model is .* a run's final/ is; .*checkpoint"):
        leyden.load(finished / "checkpoints")
    torn = unfinished / "checkpoints" / "step_00000010" / "rank_00000.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"step_00000010 is not a whole checkpoint: rank_00000.safetensors has"):
        leyden.load(torn.parent)
    assert leyden.load(unfinished)[0].config == leyden.load(finished)[0].config  # by the one before
    shutil.rmtree(unfinished / "checkpoints")
    with pytest.raises(UserError, match=r"neither a model \(final/\) nor a whole checkpoint yet"):
        leyden.load(unfinished)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_bit_that_flipped_in_a_model_is_named(finished: Path, tmp_path: Path, name: str) -> None:
    """In the middle of the weights, where no header tells; a vocabulary of which two tokens changed places."""
    model = Path(shutil.copytree(finished / "final", tmp_path / "final"))
    data = bytearray((model / name).read_bytes())
    at = len(data) * 2 // 3
    if name == "tokenizer.json":
        at = data.index(b'"e": ') + 1
        data[at : at + 1], other = b"a", data.index(b'"a": ') + 1
        data[other : other + 1] = b"e"
    else:
        data[at] ^= 1
    (model / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: not what was written there.*remove .*SHA256SUMS"):
        leyden.load(model)
    (model / "SHA256SUMS").unlink()
    leyden.load(model)


def test_settings_that_changed_are_said(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """People edit them; a flipped bit that leaves them well-formed must not pass unseen all the same."""
    model = Path(shutil.copytree(finished / "final", tmp_path / "final"))
    leyden.load(model)
    assert "changed since" not in caplog.text
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4096}))
    leyden.load(model)
    assert f"{model / 'config.json'}: changed since the model was written (SHA256SUMS)" in caplog.text
