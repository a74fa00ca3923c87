"""The tests' own stand-in for a device finds what would make the host wait, and lets all else pass."""

import numpy as np
import pytest
import torch
from device_ops import DeviceQueue, RecordedOps, WaitsError

FAILURES = (WaitsError, NotImplementedError, RuntimeError, TypeError)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x, y: y[0].item(),
        lambda x, y: int(y[0]),
        lambda x, y: bool(x.sum()),
        lambda x, y: x.tolist(),
        lambda x, y: x.numpy(),
        lambda x, y: torch.equal(x, x),
        lambda x, y: x.nonzero(),
        lambda x, y: x[x > 0],
        lambda x, y: x[y[0]],
        lambda x, y: torch.bincount(y),
        lambda x, y: torch.unique(y),
        lambda x, y: y.repeat_interleave(y),
        lambda x, y: x.cpu(),
        lambda x, y: x.to("cpu", non_blocking=True),
        lambda x, y: torch.zeros(3).to("meta"),
        lambda x, y: torch.from_numpy(np.zeros(3)).to(x.device),
        lambda x, y: x[0].copy_(torch.zeros(4)),
        lambda x, y: torch.tensor([1, 2], device="meta"),
        lambda x, y: x.new_tensor([1, 2]),
        lambda x, y: x[[0, 1]],
        lambda x, y: x[:, [0, 1]],
        lambda x, y: x.__setitem__(([0, 1],), 0),
        lambda x, y: x[torch.tensor([0, 1])],
    ],
)
def test_what_waits_is_found(wait):
    x, y = torch.empty(3, 4, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    with pytest.raises(FAILURES), DeviceQueue():
        wait(x, y)


def test_what_does_not_wait_passes_and_kernels_are_counted():
    x, index = torch.empty(3, 4, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    with DeviceQueue() as queue:
        there = torch.zeros(4).to("meta", non_blocking=True)
        x[0].copy_(torch.zeros(4), non_blocking=True)
        y = (x[index] + 1).view(-1)[2:]
        torch.empty(3, device="meta")
        x[1:2].zero_()
        y.sum()
        torch.zeros(3).sum().item()  # of the host alone
    assert there.is_meta
    assert queue.copies == 2
    assert queue.launched == {"aten.index": 1, "aten.add": 1, "aten.zero_": 1, "aten.sum": 1}


def test_a_recording_is_run_on_what_lies_there_now():
    x, out, host = torch.ones(3), torch.zeros(4), [1]

    def step() -> None:
        y = torch.zeros(4)
        y[1:] += 2 * x
        out.copy_(y * host[0])

    replay = RecordedOps()(step)
    x.copy_(torch.tensor([1.0, 2.0, 3.0]))
    host[0] = 7  # what Python knew stays as it was
    replay()
    assert out.tolist() == [0, 2, 4, 6]
    with pytest.raises(RuntimeError, match="reads values"):
        RecordedOps()(lambda: x.copy_(x if x[0].item() else -x))
    with pytest.raises(RuntimeError, match="reads values"):
        RecordedOps()(lambda: out.copy_(x[x > 0].sum()))
