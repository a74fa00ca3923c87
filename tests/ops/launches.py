"""What ops launch on a GPU, counted without one, and that they never wait for it.

Tensors are on the meta device: they have shapes and no numbers, so that to read one back to the host is an error.
Triton kernels are counted and not run, and so is every op of PyTorch that has work to do.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from leyden.ops.launching import Kernels

_NO_WORK = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
_WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive"}


@dataclass
class Launches:
    """The names of what was launched, in order: ``triton.attend``, ``aten.exp``."""

    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


class _Count(TorchDispatchMode):
    """Writes down every op that would launch; ours are looked into."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op.namespace == "leyden":
            with self:
                return OPDEFS[op.name().partition(".")[0]]._init_fn(*args, **kwargs)
        with self:  # what consists of other ops is counted by those
            out = op.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        name = op._schema.name.partition("::")[2]
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if name in _WAITING:
            raise AssertionError(f"aten.{name} waits for the GPU")
        if name in ("copy_", "_to_copy"):
            _refuse_blocking_copy(name, given, kwargs.get("device"))
        if not op.is_view and name not in _NO_WORK:
            self.launches.names.append(f"aten.{name}")
        return op(*args, **kwargs)


def _refuse_blocking_copy(name: str, given: list[torch.Tensor], to: torch.device | None) -> None:
    devices = {x.device.type for x in given} | ({to.type} if to is not None else set())
    if len(devices) > 1:
        raise AssertionError(f"aten.{name} copies between {' and '.join(sorted(devices))}, for which the host waits")


@contextlib.contextmanager
def counted(*ops: str) -> Iterator[Launches]:
    """Counts what is launched within, of the Triton kernels of ``ops`` (names of folders) and of PyTorch.

    Of a folder with several modules that launch, the others are named too: ``experts.launch_int8``.

    Raises:
        AssertionError: from within, at an op for which the host waits.
    """
    launches = Launches()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **keywords: launches.names.append(f"triton.{self.name}")

    class Recorded(Kernels):
        def __getattr__(self, name: str) -> Any:
            return Kernel(name)

    with contextlib.ExitStack() as stack:
        for op in ops:
            module = importlib.import_module(f"leyden.ops.{op}" if "." in op else f"leyden.ops.{op}.launch")
            stack.enter_context(mock.patch.object(module, "kernels", Recorded(module.kernels.module)))
        stack.enter_context(_Count(launches))
        yield launches
