"""The bytes of live tensors on a rank, now and at their highest: what the planner's memory is proved against.

Storages are noticed where an op makes them and followed by weak references until the last tensor on them is gone, so
that what autograd saves counts for as long as it is saved. The allocator's rounding and fragments, and what libraries
allocate for themselves, do not count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import (  # the documented way to see every op; it has no public name
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
)
from torch.utils._pytree import tree_leaves


@dataclass
class LiveMemory:
    """Bytes of live storages.

    Attributes:
        current: now.
        peak: the most since the beginning, or since :meth:`reset_peak`.
    """

    current: int = 0
    peak: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)
    _references: dict[int, weakref.ref[torch.UntypedStorage]] = field(default_factory=dict)

    def reset_peak(self) -> None:
        """Let the highest level begin anew from now."""
        self.peak = self.current

    def follow(self, tensors: Iterable[Any]) -> None:
        """Count the storages of ``tensors`` from now on, those that are no tensors left out."""
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                for storage in _storages(tensor):
                    self._set(storage, storage.nbytes())

    def _set(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        key = storage._cdata  # the address of the storage itself; the Python object may be made anew
        if key not in self._references:
            self._references[key] = weakref.ref(storage, lambda _, key=key: self._forget(key))
        self._add(num_bytes - self._sizes.get(key, 0))
        self._sizes[key] = num_bytes

    def _forget(self, key: int) -> None:
        self._references.pop(key, None)
        self._add(-self._sizes.pop(key, 0))

    def _add(self, num_bytes: int) -> None:
        self.current += num_bytes
        self.peak = max(self.peak, self.current)


@contextmanager
def track_memory(*held: torch.Tensor | torch.nn.Module) -> Iterator[LiveMemory]:
    """Follow every storage made inside the ``with``, and those of what is ``held`` when it begins."""
    memory = LiveMemory()
    for given in held:
        memory.follow([*given.parameters(), *given.buffers()] if isinstance(given, torch.nn.Module) else [given])
    with _resizes(memory), _Track(memory):
        yield memory


class _Track(TorchDispatchMode):
    """Looks at every op and changes none."""

    def __init__(self, memory: LiveMemory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._memory.follow(tree_leaves(result))
        return result


@contextmanager
def _resizes(memory: LiveMemory) -> Iterator[None]:
    """FSDP empties and refills storages in place, which passes no dispatcher (PyTorch's own tracker does the same)."""
    resize: Callable[[torch.UntypedStorage, int], Any] = torch.UntypedStorage.resize_

    def resize_and_tell(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        memory._set(storage, storage.nbytes())
        return result

    torch.UntypedStorage.resize_ = resize_and_tell  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]


def _storages(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    """Those of a tensor, or of the tensors that a wrapper (a DTensor) holds."""
    if is_traceable_wrapper_subclass(tensor):
        for inner in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
            if isinstance(inner, torch.Tensor):
                yield from _storages(inner)
    elif tensor.device.type != "meta":
        yield tensor.untyped_storage()
