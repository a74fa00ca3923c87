"""A model directory written by ranks of which none holds the model is the one that a process with all of it writes."""

import errno
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_ranks import mesh_of
from live_memory import track_memory
from safetensors.torch import load_file

from leyden.checkpoint import load, save
from leyden.checkpoint.export import export
from leyden.checkpoint.pieces import TensorPiece
from leyden.checkpoint.tensor_stream import TensorStream
from leyden.core.errors import UserError
from leyden.model import HybridLM, ModelConfig
from leyden.parallel import Plan, attach

FILE_BYTES = 60_000
NOTES_BYTES = 30_000
"""What ranks tell each other of who holds what."""
FOUR = [
    pytest.param(Plan(dp_shard=4), marks=pytest.mark.slow),
    Plan(cp=2, dp_shard=2, ep=2, etp=2),
    pytest.param(Plan(dp_replicate=2, tp=2, ep=2), marks=pytest.mark.slow),
    Plan(pp=2, tp=2, etp=2),
]


def config_of(layout: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        layer_types=("linear_attention", "full_attention"),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rotary_dim=8,
        intermediate_size=48,
        num_local_experts=8,
        shared_intermediate_size=0 if layout == "transformers" else 16,
    )


def whole(layout: str) -> HybridLM:
    """Random weights in float32; norms and routers are values of bfloat16, but one norm and one router."""
    model = HybridLM(config_of(layout))
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(parameter.shape, generator=generator)
        if name not in ("layers.1.input_layernorm.weight", "layers.0.mlp.gate.weight"):
            values = values.bfloat16().float() if "norm" in name or "gate.weight" in name else values
        parameter.detach().copy_(values)
    return model


def _export(plan: Plan, directory: Path, jobs: list[tuple[str, torch.dtype | None]]) -> list[int]:
    """For each job, the most bytes that tensors took on this rank beside its weights."""
    extra = []
    for layout, dtype in jobs:
        mesh = mesh_of(plan)
        weights = attach(whole(layout), mesh, torch.float32, row_tokens=64).weights
        pieces = {name: TensorPiece(weight.local, weight.part) for name, weight in weights.items()}
        with track_memory(*(piece.tensor for piece in pieces.values())) as memory:
            before = memory.current
            target = directory / f"{layout} {dtype}"
            export(pieces, config_of(layout), None, target, layout, mesh=mesh, dtype=dtype, file_bytes=FILE_BYTES)
        extra.append(memory.peak - before)
    return extra


def contents(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    """Tensors by name, JSON files, and which tensors lie together."""
    files = sorted(directory.glob("*.safetensors"))
    tensors = {(file.name, name): tensor for file in files for name, tensor in load_file(file).items()}
    names = {name: tensor for (_, name), tensor in tensors.items()}
    return names, {p.name: json.loads(p.read_text()) for p in directory.glob("*.json")}, sorted(tensors)


def assert_same(found: Path, expected: Path) -> None:
    (tensors, settings, places), (tensors_, settings_, places_) = contents(found), contents(expected)
    assert (settings, places) == (settings_, places_)
    for name, tensor in tensors_.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, torch.dtype | None], Path]:
    """The directory that one process saves of the whole model."""

    def make(layout: str, dtype: torch.dtype | None) -> Path:
        from leyden.checkpoint import saving
        from leyden.checkpoint.tensor_files import write_tensors

        small = lambda directory, tensors: write_tensors(directory, tensors, FILE_BYTES)  # noqa: E731
        monkeypatch.setattr(saving, "write_tensors", small)
        path = tmp_path / "expected" / f"{layout} {dtype}"
        save(whole(layout).to(dtype or torch.float32), None, path, layout=layout)
        return path

    return make


JOBS = [("transformers", None), ("leyden", torch.bfloat16), ("minimax", torch.bfloat16)]


def test_one_process_exports_what_it_saves(tmp_path: Path, expected: Callable[..., Path]) -> None:
    for layout, dtype in [*JOBS, ("minimax", None), ("leyden", None)]:
        pieces = {name: TensorPiece.whole(parameter) for name, parameter in whole(layout).named_parameters()}
        target = tmp_path / f"{layout} {dtype}"
        export(pieces, config_of(layout), None, target, layout, dtype=dtype, file_bytes=FILE_BYTES)
        assert_same(target, expected(layout, dtype))
        assert load(target)[0].config == config_of(layout)


@pytest.mark.parametrize("plan", FOUR, ids=str)
def test_ranks_export_what_one_process_saves(
    ranks: Callable[..., list[Any]], tmp_path: Path, expected: Callable[..., Path], plan: Plan
) -> None:
    extra = ranks(4, _export, plan, tmp_path, JOBS)
    for index, (layout, dtype) in enumerate(JOBS):
        assert_same(tmp_path / f"{layout} {dtype}", expected(layout, dtype))
        if layout != "transformers":  # whose decay buffers are larger than all weights here
            tensors = contents(expected(layout, dtype))[0].values()
            largest = max(t[0].nbytes if t.ndim == 3 else t.nbytes for t in tensors)
            most = 2 * largest + NOTES_BYTES
            assert most < sum(t.nbytes for t in tensors) / 3
            for of_rank in extra:
                assert of_rank[index] <= most, (layout, of_rank, largest)


def _disk_full_on_one(plan: Plan, directory: Path) -> str:
    mesh = mesh_of(plan)
    weights = attach(whole("leyden"), mesh, torch.float32).weights
    pieces = {name: TensorPiece(weight.local, weight.part) for name, weight in weights.items()}
    plain = TensorStream.append

    def full(stream: TensorStream, tensor: torch.Tensor) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if mesh.rank == 1:
        TensorStream.append = full  # type: ignore[method-assign]
    try:
        with pytest.raises(UserError) as caught:
            export(pieces, config_of("leyden"), None, directory, mesh=mesh, file_bytes=FILE_BYTES)
    finally:
        TensorStream.append = plain  # type: ignore[method-assign]
    return str(caught.value)


def test_a_full_disk_on_one_rank_is_an_error_on_all(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    messages = ranks(2, _disk_full_on_one, Plan(tp=2), tmp_path / "model")
    assert messages[0] == messages[1]
    assert "model could not be written: the disk is full" in messages[0]
    assert list(tmp_path.iterdir()) == []
