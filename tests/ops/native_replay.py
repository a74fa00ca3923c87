"""Calls of the native library, written down where Python runs and done again where it does not (``replay.cpp``)."""

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from leyden.ops import native
from leyden.ops.native.functions import FUNCTIONS, Function

THREADS = 2


@dataclass(frozen=True)
class At:
    """An argument that is the address of a buffer, by its number."""

    buffer: int


@dataclass
class Buffer:
    """Memory that a call reads or writes.

    Attributes:
        data: before the call.
        addresses: where it holds an address, the number of the buffer that this is in, and how far behind its begin.
    """

    data: bytes
    addresses: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Call:
    """One call.

    Attributes:
        name: of the function.
        precision: of what it computes.
        buffers: before the call.
        arguments: as C++ takes them, the number of threads included.
        results: the buffers without addresses, behind the call.
    """

    name: str
    precision: torch.dtype
    buffers: list[Buffer]
    arguments: list[At | int | float]
    results: list[torch.Tensor] = field(default_factory=list)


def record(run: Callable[[], None]) -> list[Call]:
    """All calls of declared functions that ``run`` makes."""
    calls: list[Call] = []
    given: list[Sequence[Any]] = []
    functions = native.library().functions
    check = Function.given

    def noted(self: Function, arguments: Sequence[Any]) -> list[int | float | None]:
        given.append(arguments)
        return check(self, arguments)

    def around(name: str, real: Callable[..., bytes | None]) -> Callable[..., bytes | None]:
        def call(*raw: int) -> bytes | None:
            made, tensors = _call(name, given.pop())
            fault = real(*raw)
            if fault is None:
                made.results = [_copy(tensor) for tensor in tensors]
                calls.append(made)
            return fault

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Function, "given", noted)
        for name, real in list(functions.items()):
            patch.setitem(functions, name, around(name, real))
        run()
    return calls


def _call(name: str, given: Sequence[Any]) -> tuple[Call, list[torch.Tensor]]:
    """A call that is about to be made, and the tensors that are its buffers."""
    tensors: list[torch.Tensor] = []
    made = Call(name, torch.bfloat16 if torch.bfloat16 in given else torch.float32, [], [])
    for parameter, value in zip(FUNCTIONS[name].parameters, given, strict=True):
        if isinstance(value, torch.Tensor):
            strides = value.stride()[-len(parameter.places) : -1] if parameter.mark == "~" else ()
            made.arguments += [_place(value, tensors), *strides]
        else:
            made.arguments.append(int(value == torch.bfloat16) if isinstance(value, torch.dtype) else value or 0)
            if parameter.kind == "float":
                made.arguments[-1] = float(value)
    made.buffers = [Buffer(_bytes(tensor)) for tensor in tensors]
    made.arguments.append(THREADS)
    return made, tensors


def _place(tensor: torch.Tensor, tensors: list[torch.Tensor]) -> At:
    """Which of the tensors it is: the same again where a result goes over an argument, or a new one behind them."""
    for place, other in enumerate(tensors):
        if tensor.numel() and tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape:
            return At(place)
    tensors.append(tensor)
    return At(len(tensors) - 1)


def record_steps(kept: Sequence[torch.Tensor], run: Callable[[], object]) -> list[Call]:
    """All decoding steps that ``run`` makes, of a model whose addresses point into the tensors ``kept``."""
    calls: list[Call] = []
    library = native.library()
    real = library.leyden_decode

    def call(model: Any, batch: Any, *rest: Any) -> bytes | None:
        *sizes, logits, stride, _ = (each.value for each in rest)
        model, batch = model._obj, batch._obj
        layers = model.layers.contents
        layers = (type(layers) * model.num_layers).from_address(ctypes.addressof(layers))
        structures = [model, batch, layers]
        num_logits = max(0, (batch.num_wanted - 1) * stride + model.vocab_size)
        ctypes.memset(logits, 0, 4 * num_logits)
        memory = {tensor.data_ptr(): tensor for tensor in kept}
        memory[logits] = _seen(logits, ctypes.c_float, num_logits)
        for address, kind, count in (
            (batch.tokens, ctypes.c_int64, 5 * batch.num_tokens),
            (batch.cu_seqlens, ctypes.c_int64, batch.num_sequences + 1),
            (batch.wanted, ctypes.c_int64, batch.num_wanted),
            (batch.page_tables, ctypes.c_int32, batch.num_pages),
        ):
            memory[address] = _seen(address, kind, count)
        places = list(memory) + [ctypes.addressof(structure) for structure in structures]
        sizes_of = [tensor.nbytes for tensor in memory.values()] + [ctypes.sizeof(each) for each in structures]

        def within(address: int) -> tuple[int, int]:
            found = (i for i, at in enumerate(places) if at <= address < at + sizes_of[i])
            number = next(found)
            return number, address - places[number]

        buffers = [Buffer(_bytes(tensor)) for tensor in memory.values()]
        for each in structures:
            buffers.append(Buffer(bytes(each), [(at, *within(address)) for at, address in _addresses(each)]))
        first = len(memory)
        arguments = [At(first), At(first + 1), *sizes, At(places.index(logits)), stride, THREADS]
        made = Call("leyden_decode", torch.bfloat16 if model.bfloat16 else torch.float32, buffers, arguments)
        fault = real(ctypes.byref(model), ctypes.byref(batch), *rest)
        if fault is None:
            made.results = [_copy(tensor) for tensor in memory.values()]
            calls.append(made)
        return fault

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "leyden_decode", call)
        run()
    return calls


def _seen(address: int, kind: Any, count: int) -> torch.Tensor:
    """The numbers that lie at an address."""
    dtype = {ctypes.c_float: torch.float32, ctypes.c_int32: torch.int32, ctypes.c_int64: torch.int64}[kind]
    return torch.frombuffer((kind * count).from_address(address), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _addresses(structure: Any, at: int = 0) -> Iterator[tuple[int, int]]:
    """Where a structure, or an array of structures, holds addresses that are not null, and which."""
    if isinstance(structure, ctypes.Array):
        for number, each in enumerate(structure):
            yield from _addresses(each, at + number * ctypes.sizeof(each))
        return
    for name, kind in structure._fields_:
        value, place = getattr(structure, name), at + getattr(type(structure), name).offset
        if issubclass(kind, ctypes.Structure):
            yield from _addresses(value, place)
        elif kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer):
            address = ctypes.cast(value, ctypes.c_void_p).value
            if address:
                yield place, address


def write(calls: Sequence[Call], path: Path) -> None:
    """Put them into a file that ``replay.cpp`` reads."""
    with path.open("wb") as file:
        for call in calls:
            file.write(_integers(len(call.name)) + call.name.encode() + _integers(len(call.buffers)))
            for buffer in call.buffers:
                file.write(_integers(len(buffer.data)) + buffer.data + _integers(len(buffer.addresses)))
                for address in buffer.addresses:
                    file.write(_integers(*address))
            file.write(_integers(len(call.arguments)) + b"".join(map(_argument, call.arguments)))


def read(calls: Sequence[Call], path: Path) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """What the other machine says of each call, and its results."""
    with path.open("rb") as file:
        for call in calls:
            (length,) = struct.unpack("<q", file.read(8))
            said, tensors = file.read(length).decode(), []
            for tensor in call.results:
                data = bytearray(file.read(tensor.nbytes))
                flat = torch.frombuffer(data, dtype=tensor.dtype) if data else tensor.new_empty(0)
                tensors.append(flat.view(tensor.shape))
            yield said, tensors


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _bytes(tensor: torch.Tensor) -> bytes:
    return _copy(tensor).view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _argument(value: At | float) -> bytes:
    if isinstance(value, float):
        return _integers(ord("f")) + struct.pack("<f", value)
    return _integers(ord("a"), value.buffer) if isinstance(value, At) else _integers(ord("i"), value)


def _integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)
