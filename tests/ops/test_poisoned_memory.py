"""The fixture that the other tests lean on does what it says."""

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_uninitialised_memory_is_nan(dtype: torch.dtype) -> None:
    model = torch.zeros(3, 5, dtype=dtype)
    for tensor in (
        torch.empty(3, 5, dtype=dtype),
        torch.empty_like(model),
        torch.empty_strided((3, 5), (5, 1), dtype=dtype),
        model.new_empty(3, 5),
        model.new_empty_strided((3, 5), (5, 1)),
    ):
        assert tensor.isnan().all()
