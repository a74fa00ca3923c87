"""Compressed weights are read as what the format says they stand for, and what is not known is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from leyden.checkpoint import load, save
from leyden.checkpoint.compressed_files import unpacked
from leyden.core.errors import UserError
from leyden.model import HybridLM

CHANNEL = {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True}
TENSOR = CHANNEL | {"strategy": "tensor"}
BLOCK = CHANNEL | {"strategy": "block", "block_structure": [12, 20]}
GROUP = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": True, "actorder": None}
ROWS = GROUP | {"strategy": "channel", "group_size": None}


def packed(numbers: torch.Tensor) -> torch.Tensor:
    """Integers from -8 to 7 [F, D] in int32, by arithmetic on Python's own integers."""
    words = []
    for row in numbers.tolist():
        row += [-8] * (-len(row) % 8)
        sums = [sum((x + 8) << (4 * j) for j, x in enumerate(row[at : at + 8])) for at in range(0, len(row), 8)]
        words.append([x - (1 << 32) if x >> 31 else x for x in sums])
    return torch.tensor(words, dtype=torch.int32)


def compress(
    weight: torch.Tensor, said: dict[str, Any], dtype: torch.dtype, generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random parts of a matrix like ``weight``, and the matrix that they stand for, element by element in float64."""
    F, D = weight.shape
    rows, columns = {
        "tensor": (F, D),
        "channel": (1, D),
        "block": said.get("block_structure"),
        "group": (1, said.get("group_size")),
    }[said["strategy"]]
    scale = (torch.rand(-(-F // rows), -(-D // columns), generator=generator) * 0.1 + 0.01).to(dtype)
    if said["type"] == "int":
        numbers = torch.randint(-8, 8, (F, D), generator=generator)
        parts = {"weight_packed": packed(numbers), "weight_shape": torch.tensor([F, D])}
    else:
        parts = {"weight": torch.randn(F, D, generator=generator).to(torch.float8_e4m3fn)}
        numbers = parts["weight"]
    expected = torch.empty(F, D, dtype=torch.float64)
    for i in range(F):
        for j in range(D):
            expected[i, j] = numbers[i, j].double() * scale[i // rows, j // columns].double()
    return {**parts, "weight_scale": scale[0] if said["strategy"] == "tensor" else scale}, expected.to(dtype)


def compressed_model(
    model: HybridLM, directory: Path, said: dict[str, Any], dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """Write ``model`` with its experts' and attention's matrices compressed; what they stand for, by their names."""
    save(model, None, directory, layout="minimax")
    tensors, generator, expected = load_file(directory / "model.safetensors"), torch.Generator().manual_seed(0), {}
    for name in [name for name in tensors if ".experts." in name or ("self_attn" in name and tensors[name].ndim > 1)]:
        parts, expected[name] = compress(tensors.pop(name), said, dtype, generator)
        tensors |= {f"{name.removesuffix('weight')}{leaf}": part for leaf, part in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    group = {"weights": said, "targets": ["Linear"], "input_activations": None}
    section = {"quant_method": "compressed-tensors", "format": "any", "config_groups": {"group_0": group}}
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    (directory / "SHA256SUMS").unlink()
    return expected


@pytest.fixture
def model(random_model: Callable[..., HybridLM]) -> HybridLM:
    return random_model(torch.bfloat16, hidden_size=28, intermediate_size=20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("said", [CHANNEL, TENSOR, BLOCK, GROUP, ROWS], ids=["channel", "tensor", "block", "4", "rows"])
def test_weights_are_what_they_stand_for(
    model: HybridLM, tmp_path: Path, said: dict[str, Any], dtype: torch.dtype
) -> None:
    expected = compressed_model(model, tmp_path / "m", said, dtype)
    save(load(tmp_path / "m")[0], None, tmp_path / "again", layout="minimax")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert len(expected) > 40
    for name, weight in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], weight), name
    assert torch.equal(found["model.norm.weight"].float(), model.norm.weight)


@pytest.mark.parametrize("said", [BLOCK, GROUP], ids=["block", "4"])
def test_compressed_weights_become_8_bits_as_plain_ones_do(
    model: HybridLM, tmp_path: Path, said: dict[str, Any]
) -> None:
    compressed_model(model, tmp_path / "m", said)
    save(load(tmp_path / "m")[0], None, tmp_path / "plain")
    one, other = (load(tmp_path / name, int8="layers")[0].state_dict() for name in ("m", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@given(st.lists(st.lists(st.integers(-8, 7), min_size=11, max_size=11), min_size=1, max_size=5))
def test_what_is_packed_is_unpacked(numbers: list[list[int]]) -> None:
    assert unpacked(packed(torch.tensor(numbers)), 11).tolist() == numbers


@pytest.mark.parametrize(
    "said",
    [
        GROUP | {"symmetric": False},
        GROUP | {"actorder": "group"},
        GROUP | {"num_bits": 8},
        CHANNEL | {"num_bits": 4},
        BLOCK | {"block_structure": None},
        GROUP | {"group_size": -1},
        None,
    ],
)
def test_a_scheme_that_is_not_known_is_refused(model: HybridLM, tmp_path: Path, said: Any) -> None:
    compressed_model(model, tmp_path / "m", GROUP)
    change_config(tmp_path / "m", lambda section: section["config_groups"]["group_0"].update(weights=said))
    with pytest.raises(UserError, match=r"config_groups\.group_0 compresses weights as .*the model's release in b"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("said", "changes", "says"),
    [
        (CHANNEL, {"weight_scale": None}, r"weight is compressed, and lacks .*weight_scale in floats"),
        (CHANNEL, {"weight_scale": torch.ones(2, 1)}, r"weight_scale \[2, 1\] is of no scheme"),
        (
            GROUP,
            {"weight_shape": torch.tensor([20, 99])},
            r"weight_packed is compressed, and lacks .*weight_shape t",
        ),
        (GROUP, {"weight_shape": None}, r"weight_packed is compressed, and lacks"),
        (GROUP, {"weight_zero_point": torch.ones(3, 3, dtype=torch.int32)}, r"1 unexpected: .*weight_zero_point"),
    ],
)
def test_damaged_parts_are_told(
    model: HybridLM, tmp_path: Path, said: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    compressed_model(model, tmp_path / "m", said)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for leaf, value in changes.items():
        tensors[f"model.layers.1.block_sparse_moe.experts.2.w1.{leaf}"] = value
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=says):
        load(tmp_path / "m")


def test_another_method_is_refused(model: HybridLM, tmp_path: Path) -> None:
    compressed_model(model, tmp_path / "m", GROUP)
    change_config(tmp_path / "m", lambda section: section.update(quant_method="gptq"))
    with pytest.raises(UserError, match="quantization_config is not known"):
        load(tmp_path / "m")
    change_config(tmp_path / "m", lambda section: section.update(quant_method="compressed-tensors", config_groups={}))
    with pytest.raises(UserError, match="has no config_groups"):
        load(tmp_path / "m")


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config["quantization_config"])
    (directory / "config.json").write_text(json.dumps(config))
