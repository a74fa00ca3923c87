"""Counted communication: the bytes that a rank hands to collectives, taken where they pass PyTorch's dispatcher.

Nothing that communicates takes part in the count: FSDP's collectives, the pipeline's sends and our own are seen alike,
in the backward too. What is planned (:mod:`leyden.parallel.planner`) is proved against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode  # the documented way to see every op; it has no public name
from torch.utils._pytree import tree_leaves

from leyden.parallel.mesh import Mesh

OTHER = "other"
"""The axis of what goes over a group that is none of the mesh's."""

_OPERATIONS = {
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "send": "send",
    "broadcast_": "broadcast",
    "gather_": "gather",
    "scatter_": "scatter",
    "reduce_": "reduce",
    # The same as functions of values, which DTensor and compiled code call.
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "reduce_scatter_tensor_out": "reduce_scatter",
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "all_reduce_coalesced": "all_reduce",
    "all_reduce_coalesced_": "all_reduce",
    "all_to_all_single": "all_to_all",
    "isend": "send",
    "broadcast": "broadcast",
}
_SILENT = {"recv_", "recv_any_source_", "irecv", "barrier", "monitored_barrier_", "wait_tensor", "check_for_nan"}
"""Ops of the same namespaces that hand nothing over."""


@dataclass(frozen=True)
class Call:
    """One collective.

    Attributes:
        operation: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all``, ``send``, ...
        axis: one of :data:`leyden.parallel.mesh.AXES`, or :data:`OTHER`.
        num_bytes: of the tensors handed over: a rank's own rows in an all-gather, all rows in the others.
    """

    operation: str
    axis: str
    num_bytes: int


@dataclass
class Traffic:
    """The collectives of one rank, in the order in which they were called."""

    calls: list[Call] = field(default_factory=list)

    def by_axis(self) -> dict[str, int]:
        """Bytes of every axis that carried any."""
        total: Counter[str] = Counter()
        for call in self.calls:
            total[call.axis] += call.num_bytes
        return {axis: num_bytes for axis, num_bytes in total.items() if num_bytes}

    def by_operation(self) -> dict[tuple[str, str], int]:
        """Bytes of every (axis, operation) that carried any."""
        total: Counter[tuple[str, str]] = Counter()
        for call in self.calls:
            total[call.axis, call.operation] += call.num_bytes
        return {key: num_bytes for key, num_bytes in total.items() if num_bytes}


@contextmanager
def count_traffic(mesh: Mesh) -> Iterator[Traffic]:
    """Count what this rank hands to collectives inside the ``with``.

    Raises:
        RuntimeError: a collective that this module does not know was called; a count without it would be wrong.
    """
    traffic = Traffic()
    with _Count(mesh, traffic):
        yield traffic


class _Count(TorchDispatchMode):
    """Looks at every op and changes none."""

    def __init__(self, mesh: Mesh, traffic: Traffic) -> None:
        super().__init__()
        self._mesh, self._traffic = mesh, traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        if namespace in ("c10d", "_c10d_functional"):
            self._note(name, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in _SILENT:
            return
        if name not in _OPERATIONS:
            raise RuntimeError(f"count_traffic knows no collective {func}; say in _OPERATIONS what it hands over.")
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        handed = [value for key, value in given.items() if key.startswith(("input", "tensor", "self"))]
        num_bytes = sum(t.numel() * t.itemsize for t in tree_leaves(handed) if isinstance(t, torch.Tensor))
        axis = self._mesh.axis_of(_group_name(given)) or OTHER
        self._traffic.calls.append(Call(_OPERATIONS[name], axis, num_bytes))


def _group_name(given: dict[str, Any]) -> str:
    """Of a collective's arguments; a process group may come as the object that TorchScript knows it by."""
    group = given["process_group"] if "process_group" in given else given["group_name"]
    if isinstance(group, torch.ScriptObject):
        group = dist.ProcessGroup.unbox(group)
    return group if isinstance(group, str) else group.group_name
