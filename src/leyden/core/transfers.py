"""Non-blocking copies between host and device: several tensors at once, through pinned memory.

A copy of ordinary memory makes the host wait for all that the device was given before. A pinned one is queued, and the
allocator hands pinned memory out again only when the copies from it are over.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

_ALIGNMENT = 64
"""Bytes. Kernels are compiled anew for pointers that are multiples of less than 16."""


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the current one, where there is such a thing: kernels are launched on the current GPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def packed_bytes(arrays: Sequence[np.ndarray]) -> int:
    """Of a buffer that :func:`send` can put ``arrays`` into."""
    return sum(map(_room, arrays))


def send(arrays: Sequence[np.ndarray], device: torch.device, into: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Copy arrays to a device by one copy, without waiting for it.

    Args:
        arrays: of any shapes and dtypes.
        device: where to. For the CPU, the tensors are the arrays themselves.
        into: [:func:`packed_bytes` at least] uint8 on that device, overwritten. None: new memory.

    Returns:
        A tensor for each array; all of them lie in one buffer. The same shapes and dtypes have the same places in
        ``into``, so what was computed from the tensors can be computed again after another ``send``.
    """
    if device.type == "cpu" and into is None:
        return list(map(torch.from_numpy, arrays))
    host = _host_memory(packed_bytes(arrays))
    bytes_of, place = host.numpy(), 0
    for array in arrays:
        bytes_of[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        place += _room(array)
    if into is None:
        there = host.to(device, non_blocking=True)
    else:
        there = into[: len(host)].copy_(host, non_blocking=True)
    return _views(there, arrays)


def fetch(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The values of tensors of one device on the host, by one copy that is waited for; those of the CPU as they are."""
    device = tensors[0].device
    if device.type == "cpu":
        return list(tensors)
    there = _end_to_end(tensors)
    host = _host_memory(len(there))
    host.copy_(there, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return _apart(host, tensors)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; one from the host is copied without waiting for it."""
    if tensor.device.type == "cpu" and device.type != "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pick(rows: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """The rows of [R, ...] with these numbers, which the host knows; ``rows`` itself where they are all, in order."""
    if len(numbers) == len(rows) and list(numbers) == list(range(len(rows))):
        return rows
    (index,) = send([np.asarray(numbers, np.int64)], rows.device)
    return rows.index_select(0, index)


def _host_memory(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def _end_to_end(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The bytes of all of them, those of wide elements first, so that all elements are aligned."""
    flat = [x.reshape(-1).view(torch.uint8) for x in _widest_first(tensors)]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _apart(bytes_of: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What :func:`_end_to_end` of ``tensors`` holds."""
    parts = bytes_of.split([x.numel() * x.element_size() for x in _widest_first(tensors)])
    found = dict(zip(map(id, _widest_first(tensors)), parts, strict=True))
    return [found[id(x)].view(x.dtype).view(x.shape) for x in tensors]


def _widest_first(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return sorted(tensors, key=lambda x: -x.element_size())


def _room(array: np.ndarray) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT


def _views(buffer: torch.Tensor, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
    parts = buffer.split([_room(array) for array in arrays])
    dtypes = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
    return [
        part[: array.nbytes].view(dtype).view(array.shape)
        for part, dtype, array in zip(parts, dtypes, arrays, strict=True)
    ]
