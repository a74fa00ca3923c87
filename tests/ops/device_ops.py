"""What reaches a device, without one: its queue of kernels, what would wait for it, and a recording played back.

Tensors of the meta device stand for those of a GPU. Nothing can be read from them, so whatever asks the host to know
one of their values fails by itself; what is left to be watched are copies that make the host wait.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from leyden.ops import backend
from leyden.ops.experts.grouped import reason_against
from leyden.ops.softmax_attention import gpu

_READ_VALUES = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "_unique2", "is_nonzero"}
_COPIES = {"to", "_to_copy", "copy_", "_copy_from"}
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_MADE_OF_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}


class WaitsError(AssertionError):
    """The host would wait for the device."""


def take_gpu_bodies(patch: pytest.MonkeyPatch) -> None:
    """Let ops run the bodies that they have for a Hopper GPU: on meta tensors, and on CPU tensors interpreted."""
    portable = "softmax_attention_portable"
    experts, attention = (importlib.import_module(f"leyden.ops.{name}") for name in ("experts", "softmax_attention"))
    original = getattr(attention, portable)

    def choose(op: str, device_type: str, triton: torch.dtype | None, native: torch.dtype | None) -> str:
        return "triton" if triton in backend._TRITON_DTYPES else "torch"

    def attend(q: torch.Tensor, *arguments: Any) -> torch.Tensor:
        *others, softcap = arguments
        return gpu.softmax_attention_gpu(q, *others) if q.is_meta and softcap is None else original(q, *arguments)

    patch.setattr(backend, "_automatic", choose)
    for name, module in list(sys.modules.items()):
        if name.startswith("leyden.ops") and hasattr(module, "in_reach"):
            patch.setattr(module, "in_reach", lambda *tensors: False)  # values that the host may look at
    patch.setattr(experts, "stays_on_device", lambda x, down: not reason_against(x, down))
    patch.setattr(attention, portable, attend)
    patch.setattr(gpu, "_has_varlen", lambda device_index: True)


class DeviceQueue(TorchDispatchMode):
    """Counts what is launched on the meta device; raises where the host would wait for it.

    An op that is no view counts as one kernel, an op of Leyden too, however many it launches.

    Attributes:
        launched: how often each op was.
        copies: how many copies went from the host to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.copies = 0
        self._functions = _ValuesOfTheHost()

    def __enter__(self) -> "DeviceQueue":
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._functions.__exit__(*exception)

    @property
    def num_launches(self) -> int:
        return self.launched.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        here = {x.device.type for x in tensors} | ({kwargs["device"].type} if kwargs.get("device") else set())
        if "meta" not in here:
            return func(*args, **kwargs)
        if name in _READ_VALUES:
            raise WaitsError(f"{name} reads values of the device")
        if "cpu" in here and any(x.device.type == "cpu" and x.ndim for x in tensors):
            if name not in _COPIES:
                raise WaitsError(f"{name} copies a tensor of the host, and waits for that")
            if not _does_not_wait(func, args, kwargs):
                raise WaitsError(f"{name} copies between host and device, and waits for that")
            self.copies += 1
        elif name in ("to", "_to_copy") and kwargs.get("device") == torch.device("cpu"):
            raise WaitsError("a copy to the host; fetch() is to make the only one")
        else:
            out = func(*args, **kwargs)
            if name not in _NO_KERNEL and not _is_view(func, tensors, out):
                self.launched[f"{func.namespace}.{name}"] += 1
            return out
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler would be imported


class _ValuesOfTheHost(TorchFunctionMode):
    """Refuses what never reaches the dispatcher: tensors made of Python's values on the device, lists as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = args[0].device if func is torch.Tensor.new_tensor else kwargs.get("device", "cpu")
        if func in _MADE_OF_VALUES and torch.device(device or "cpu").type == "meta":
            raise WaitsError(f"torch.{func.__name__} copies values of the host, and waits for that")
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                raise WaitsError("a list as an index is copied, and waited for")
        return func(*args, **kwargs)


def _does_not_wait(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("non_blocking"))


def _is_view(func: Any, tensors: list[torch.Tensor], out: Any) -> bool:
    """Whether the op wrote nothing: ops of PyTorch made of others arrive whole in inference mode, and may have."""
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
        return False
    before = {x.untyped_storage()._cdata for x in tensors}
    return all(x.untyped_storage()._cdata in before for x in tree_leaves(out) if isinstance(x, torch.Tensor))


class RecordedOps(TorchDispatchMode):
    """Stands for a CUDA graph on the CPU: the ops of a step, run again on the same memory, whatever lies there now.

    It is a :class:`leyden.serve.graphs.Recorder`. Whatever the step's Python does besides is not run again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ops: list[tuple[Any, Any, Any, Any]] = []
        self.recordings = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        step()  # as it is done before a graph is recorded
        self._ops = ops = []
        with self:
            step()
        self.recordings += 1
        return lambda: _run_again(ops)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        indices = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor)] if "index" in str(func) else []
        by_mask = any(x.dtype == torch.bool for x in indices[: len(indices) - ("put" in str(func))])
        if func.overloadpacket.__name__ in _READ_VALUES or by_mask:
            raise RuntimeError(f"{func} reads values, which a recording would never see change")
        out = func(*args, **kwargs)
        self._ops.append((func, args, kwargs, out))
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def _run_again(ops: list[tuple[Any, Any, Any, Any]]) -> None:
    for func, args, kwargs, out in ops:
        if func.overloadpacket.__name__ in _NO_KERNEL:
            continue
        for kept, made in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
            if isinstance(kept, torch.Tensor) and kept.data_ptr() != made.data_ptr():
                assert kept.shape == made.shape, (func, kept.shape, made.shape)
                kept.copy_(made)
