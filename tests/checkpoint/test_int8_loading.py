"""Weights rounded to 8 bits while they are read: the same bits as afterwards, from any layout, in little memory."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leyden.checkpoint import load, save, tensor_files
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig, quantize
from leyden.model.quantized import Int8

ModelMaker = Callable[..., HybridLM]


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, so that a small matrix takes several reads."""
    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 300)


@pytest.mark.parametrize("layout", ["leyden", "transformers", "minimax"])
@pytest.mark.parametrize(
    ("int8", "dtype", "changes"),
    [
        ("layers", torch.bfloat16, {"rotary_dim": 8, "num_attention_heads": 6}),
        ("all", torch.float32, {}),
        ("all", torch.bfloat16, {"tie_word_embeddings": True}),
    ],
)
def test_the_bits_are_those_of_rounding_afterwards(
    random_model: ModelMaker, tmp_path: Path, layout: str, int8: Int8, dtype: torch.dtype, changes: dict
) -> None:
    save(random_model(dtype, **changes), None, tmp_path, layout=layout)
    loaded, _ = load(tmp_path, int8=int8)
    expected = quantize(copy.deepcopy(load(tmp_path)[0]), head=int8 == "all")
    assert loaded.dtype == expected.dtype == dtype and not loaded.training
    values, others = loaded.state_dict(), expected.state_dict()
    assert values.keys() == others.keys()
    for name, value in values.items():
        assert value.dtype == others[name].dtype and torch.equal(value, others[name]), name
    tied = changes.get("tie_word_embeddings", False)
    assert (loaded.lm_head.weight.data_ptr() == loaded.embed_tokens.weight.data_ptr()) == tied
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(tokens), expected(tokens))


def test_what_is_not_in_8_bits_follows_the_dtype(random_model: ModelMaker, tmp_path: Path) -> None:
    save(random_model(), None, tmp_path)
    model, _ = load(tmp_path, dtype=torch.bfloat16, int8="layers")
    assert {str(tensor.dtype) for tensor in model.state_dict().values()} == {
        "torch.int8",
        "torch.float32",
        "torch.bfloat16",
    }
    assert model.embed_tokens.weight.dtype == model.dtype == torch.bfloat16


def test_a_weight_that_is_no_number_is_named(random_model: ModelMaker, tmp_path: Path) -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("layers.0.mlp.experts.down_proj")[1, 2, 3] = torch.inf
    save(model, None, tmp_path, layout="minimax")
    with pytest.raises(UserError, match=r"layers\.0\.block_sparse_moe\.experts\.1\.w2\.weight in .*infinite"):
        load(tmp_path, int8="layers")


def test_a_file_that_shrinks_meanwhile_is_told(random_model: ModelMaker, tmp_path: Path) -> None:
    save(random_model(), None, tmp_path)
    files = tensor_files.TensorFiles(tmp_path)
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 200)
    last = max(files.stored, key=lambda name: files.stored[name].start)
    with pytest.raises(UserError, match="it was complete when it was opened"):
        list(files.read_rows(last))


_SIZES = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1024, "vocab_size": 4096}
_PROGRAM = """
import json, sys, torch
from leyden.bench.memory import peak_bytes, reset_peak, resident_bytes
from leyden.checkpoint import load
torch.set_num_threads(1)
load(sys.argv[1], int8="layers")  # what the library itself takes, once
before = resident_bytes()
reset_peak()
model, _ = load(sys.argv[2], int8=sys.argv[3])
held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
print(json.dumps({"peak": peak_bytes() - before, "result": sum(held.values())}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["leyden", "minimax"])
def test_peak_memory_is_near_the_result(random_model: ModelMaker, tmp_path: Path, layout: str) -> None:
    """Of a model of 220 MB in bfloat16: what is read and rounded at the moment comes on top, and does not grow."""
    model = HybridLM(ModelConfig.parse(_SIZES, "test model")).bfloat16()
    save(model, None, tmp_path / "large", layout=layout)
    save(random_model(), None, tmp_path / "small", layout=layout)
    stored = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    command = [sys.executable, "-c", _PROGRAM, tmp_path / "small", tmp_path / "large", "all"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240, env=environment)
    found = json.loads(ended.stdout)
    assert found["result"] < 0.53 * stored
    assert found["peak"] < found["result"] + (64 << 20), found
