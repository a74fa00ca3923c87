"""Safetensors files written as their tensors come."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leyden.checkpoint.tensor_stream import DTYPES, TensorStream


def test_every_dtype_and_shape_is_read_by_the_library(tmp_path: Path) -> None:
    shapes = [(3, 5), (7,), (), (0, 4), (2, 3, 2)]
    dtypes = sorted(DTYPES.values(), key=lambda dtype: -dtype.itemsize)
    tensors = {
        f"{dtype} {shape}": (100 * torch.randn(shape, dtype=torch.float64)).to(dtype)
        for dtype in dtypes
        for shape in shapes
    }
    described = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with TensorStream(tmp_path / "x", described) as stream:
        for tensor in tensors.values():
            for rows in tensor.split(2) if tensor.ndim > 1 else [tensor]:  # in parts, and not contiguous
                stream.append(rows.mT.contiguous().mT if rows.ndim > 1 else rows)
    loaded = load_file(tmp_path / "x")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_a_narrow_tensor_before_a_wide_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wide of torch\.float32 begins at byte 2"):
        TensorStream(tmp_path / "x", [("narrow", torch.bfloat16, (1,)), ("wide", torch.float32, (1,))])


def test_a_file_that_lacks_contents_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="lacks 4 bytes"),
        TensorStream(tmp_path / "x", [("x", torch.float32, (2,))]) as stream,
    ):
        stream.append(torch.ones(1))
