"""Copies of several tensors at once: what arrives is what was sent, aligned, and in the same places every time."""

import numpy as np
import pytest
import torch

from leyden.core import transfers
from leyden.core.transfers import fetch, on_device, packed_bytes, pick, send, sent

CPU = torch.device("cpu")
ARRAYS = [
    np.arange(5),
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.empty(0, np.int64),
    np.array([[0.5], [0.25]]),
    np.array([True, False, True]),
    np.arange(12, dtype=np.float32).reshape(3, 4).T,
]


def test_arrays_arrive_in_one_buffer_aligned_and_each_in_its_place() -> None:
    buffer = torch.full((packed_bytes(ARRAYS),), 255, dtype=torch.uint8)
    first = send(ARRAYS, CPU, buffer)
    for tensor, array in zip(first, ARRAYS, strict=True):
        assert torch.equal(tensor, torch.from_numpy(np.ascontiguousarray(array)))
        assert tensor.storage_offset() * tensor.element_size() % 64 == 0
        assert tensor.untyped_storage().data_ptr() == buffer.data_ptr()
    send([array + array for array in ARRAYS], CPU, buffer)
    assert torch.equal(first[0], 2 * torch.arange(5))
    assert first[3].tolist() == [[1.0], [0.5]]


def test_the_cpu_takes_arrays_as_they_are() -> None:
    (tensor,) = send(ARRAYS[:1], CPU)
    assert tensor.data_ptr() == ARRAYS[0].ctypes.data
    tensors = [torch.ones(2), torch.zeros(1)]
    assert all(a is b for a, b in zip(fetch(tensors), tensors, strict=True))
    assert sent(tensors[0], CPU) is tensors[0]


@pytest.mark.parametrize("count", [1, 5])
def test_what_comes_back_end_to_end_is_taken_apart(count: int) -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(6).view(2, 3).t(),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.empty(0, 4),
        torch.tensor([[1.5, 2.5]]),
    ][:count]
    for ours, theirs in zip(transfers._apart(transfers._end_to_end(tensors), tensors), tensors, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_rows_are_picked_by_their_numbers() -> None:
    rows = torch.arange(6).view(3, 2)
    assert pick(rows, [0, 1, 2]) is rows
    assert pick(rows, [2, 0, 2]).tolist() == [[4, 5], [0, 1], [4, 5]]
    assert pick(rows, []).shape == (0, 2)
    assert pick(rows, [1, 0, 2]).tolist() == [[2, 3], [0, 1], [4, 5]]


def test_a_gpu_becomes_the_current_device_and_a_cpu_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    def exchange(index: int) -> int:
        current.append(index)
        return current[-2]

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    with on_device(torch.device("cuda:1")):
        assert current == [0, 1]
    assert current == [0, 1, 0]
    with on_device(CPU):
        assert len(current) == 3
