"""The tracker of live tensor bytes, against figures by hand."""

import torch
from live_memory import track_memory
from torch import nn


def test_storages_count_once_and_until_they_are_gone() -> None:
    with track_memory() as memory:
        x = torch.zeros(100)
        assert memory.current == 400
        y = x.view(10, 10)[2:]  # a view is no memory of its own
        assert memory.current == 400
        del x
        assert memory.current == 400
        del y
        assert memory.current == 0
        z = torch.zeros(50, dtype=torch.float64) + torch.ones(50, dtype=torch.float64)
        assert (memory.current, memory.peak) == (400, 1200)  # two terms and their sum
        memory.reset_peak()
        assert memory.peak == 400
        del z


def test_what_autograd_saves_counts() -> None:
    x = torch.ones(100, requires_grad=True)
    with track_memory(x) as memory:
        loss = x.exp().exp().sum()
        assert memory.current == 400 + 2 * 400 + 4  # x, and each exp's result, which its backward needs
        loss.backward()
        del loss
        assert memory.current == 800  # x and its gradient
        x.grad = None
    assert memory.current == 400


def test_models_and_resized_storages() -> None:
    model = nn.Linear(8, 4)
    with track_memory(model) as memory:
        assert memory.current == (8 * 4 + 4) * 4
        buffer = torch.empty(64)
        buffer.untyped_storage().resize_(0)  # as FSDP frees gathered weights
        assert memory.current == 144
        buffer.untyped_storage().resize_(128)
        assert memory.current == 144 + 128
    resize = torch.UntypedStorage.resize_
    assert "resize_and_tell" not in repr(resize)
