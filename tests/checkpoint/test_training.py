"""Training checkpoints: whole or not there, the newest whole one found, nothing unpickled."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.checkpoint import training
from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.training import Values, latest_training, load_training, save_training
from leyden.core.errors import UserError

VALUES = {"step": 3, "lr": 0.1 + 0.2, "nested": {"list": [1, 2.5, None, "x"]}, "large": 2**80}


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.weight": torch.randn(3, 5, 2, generator=generator).to(torch.bfloat16),
        "master.weight": torch.randn(3, 5, 2, generator=generator),
        "norm": torch.randn(7, generator=generator, dtype=torch.float64),
        "bytes": torch.randint(256, (11,), generator=generator).to(torch.uint8),
    }


def _empty() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in _tensors().items()}


def _pieces(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorPiece]:
    return {name: TensorPiece.whole(tensor) for name, tensor in tensors.items()}


def _save(run_dir: Path, step: int, keep: int = 5) -> Path:
    values = Values(VALUES | {"step": step}, {"random": step})
    return save_training(run_dir, step, _pieces(_tensors(step)), values, keep=keep)


def test_round_trip(tmp_path: Path) -> None:
    path = _save(tmp_path, 3)
    assert path == tmp_path / "checkpoints" / "step_00000003" == latest_training(tmp_path)
    loaded = _empty()
    assert load_training(path, _pieces(loaded)) == Values(VALUES, {"random": 3})
    for name, tensor in _tensors(3).items():
        assert torch.equal(loaded[name], tensor), name


def test_parameters_are_filled_in_place(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 3)
    saved = {name: p.detach().clone() for name, p in module.named_parameters()}
    path = save_training(tmp_path, 1, _pieces(dict(module.named_parameters())), Values({}), keep=1)
    torch.nn.init.zeros_(module.weight)
    load_training(path, _pieces(dict(module.named_parameters())))
    assert torch.equal(module.weight, saved["weight"])
    assert module.weight.requires_grad


def test_nothing_is_pickled(tmp_path: Path) -> None:
    names = sorted(file.suffix for file in _save(tmp_path, 1).iterdir())
    assert names == [".json", ".json", ".json", ".safetensors"]


def test_no_checkpoint(tmp_path: Path) -> None:
    assert latest_training(tmp_path) is None
    (tmp_path / "checkpoints" / ".step_00000001.part").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_1").mkdir()
    assert latest_training(tmp_path) is None


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_damage_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    good, bad = _save(run_dir, 1), _save(run_dir, 2)
    file = data.draw(st.sampled_from(sorted(bad.iterdir())))
    content = file.read_bytes()
    damage = data.draw(st.sampled_from(["removed", "cut", "flipped"]))
    if damage == "removed":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
    if file.name == "manifest.json" and damage == "flipped" and not _reads_otherwise(file, content):
        return
    assert latest_training(run_dir) == good


@pytest.mark.parametrize("manifest", ["", "[]", "3", '{"values.json": {"cytes": 1}}', '{"values.json": 7}'])
def test_a_manifest_that_is_none(tmp_path: Path, manifest: str) -> None:
    good, bad = _save(tmp_path, 1), _save(tmp_path, 2)
    (bad / "manifest.json").write_text(manifest)
    assert latest_training(tmp_path) == good


def _reads_otherwise(file: Path, content: bytes) -> bool:
    """Whether the manifest says anything else than before (a space turned into a line feed does not)."""
    try:
        return json.loads(file.read_bytes()) != json.loads(content)
    except ValueError:
        return True


def test_the_warning_names_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _save(tmp_path, 2)
    (path / "values.json").write_text("{}")
    assert latest_training(tmp_path) is None
    assert f"{path} is not whole (values.json has 2 bytes, not" in caplog.text


def test_old_checkpoints_go_and_abandoned_ones_too(tmp_path: Path) -> None:
    for step in (2, 4, 6, 12):
        _save(tmp_path, step, keep=9)
    (tmp_path / "checkpoints" / ".step_00000005.part").mkdir()
    _save(tmp_path, 8, keep=3)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step_00000004", "step_00000006", "step_00000008"]


@pytest.mark.parametrize("stage", ["tensors", "manifest", "rename"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    before = _save(tmp_path, 1, keep=1)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        if stage == "tensors":  # inside DCP, which wraps what happens there
            patch.setattr(os, "fsync", fail)
        elif stage == "manifest":
            patch.setattr(training, "_fingerprint", fail)
        else:
            patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match=r"step_00000002 could not be written: the disk is full"):
            _save(tmp_path, 2, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]
    assert latest_training(tmp_path) == before
    assert latest_training(tmp_path) != _save(tmp_path, 2, keep=1)


def test_another_error_while_writing_keeps_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PermissionError, match="no"):
        _save(tmp_path, 1)


def test_values_that_are_not_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_training(tmp_path, 1, _pieces(_tensors()), Values({"set": {1}}), keep=1)
    assert latest_training(tmp_path) is None


def test_other_tensors_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    wrong = _empty()
    wrong["norm"] = torch.zeros(8, dtype=torch.float64)
    wrong["master.weight"] = torch.zeros(3, 5, 2, dtype=torch.float16)
    wrong["new"] = wrong.pop("bytes")
    with pytest.raises(UserError) as caught:
        load_training(path, _pieces(wrong))
    message = str(caught.value)
    assert "new is missing" in message
    assert "bytes is unknown to this run" in message
    assert "norm is torch.float64 [7] there and torch.float64 [8] here" in message
    assert "master.weight is torch.float32 [3, 5, 2] there and torch.float16 [3, 5, 2] here" in message
    assert not any(tensor.any() for tensor in wrong.values())
