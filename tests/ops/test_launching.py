"""Kernels are launched where their tensors are."""

import contextlib
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.jit import KernelInterface

from leyden.ops.launching import Kernels


class _Spy(KernelInterface):
    """Writes down on which device it is run."""

    def __init__(self, where: list[str], current: list[str]) -> None:
        self.where, self.current = where, current

    def run(self, *arguments, grid, warmup, **keywords):  # pyright: ignore[reportIncompatibleMethodOverride]
        self.where.append(self.current[-1])


class _Elsewhere:
    """What a launch asks of a tensor on the second GPU."""

    is_cuda, device = True, torch.device("cuda:1")

    def get_device(self) -> int:
        return 1


def test_on_the_device_of_the_first_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str] = []
    current = ["cuda:0"]

    @contextlib.contextmanager
    def device(wanted: torch.device):
        current.append(str(wanted))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    module = ModuleType("kernels")
    module.spy, module.WIDTH = _Spy(where, current), 3
    kernels = Kernels(module)
    kernels.spy[(1,)](_Elsewhere())
    kernels.spy[(1,)](torch.zeros(1))
    assert where == ["cuda:1", "cuda:0"]
    assert current == ["cuda:0"]
    assert kernels.WIDTH == 3


@pytest.mark.gpu
def test_on_a_second_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    from leyden.ops import rms_norm

    x = torch.randn(3, 64)
    found = rms_norm(x.to("cuda:1"), torch.ones(64, device="cuda:1"), 1e-5, "triton")
    torch.testing.assert_close(found.cpu(), rms_norm(x, torch.ones(64), 1e-5, "reference"))
