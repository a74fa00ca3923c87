"""Calls of the native library, written down where Python runs and done again where it does not (``replay.cpp``)."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from leyden.ops import native
from leyden.ops.native.functions import FUNCTIONS, Function, Parameter

THREADS = 2


@dataclass
class Call:
    """One call.

    Attributes:
        name: of the function.
        parameters: as declared.
        before: the arguments; tensors are copies.
        after: the tensors behind the call.
    """

    name: str
    parameters: Sequence[Parameter]
    before: list[object]
    after: list[torch.Tensor]


@dataclass
class _Again:
    place: int


def record(run: Callable[[], None]) -> list[Call]:
    """All calls that ``run`` makes."""
    calls: list[Call] = []
    given: list[Sequence[object]] = []
    functions = native.library().functions
    check = Function.given

    def noted(self: Function, arguments: Sequence[object]) -> list[int | float | None]:
        given.append(arguments)
        return check(self, arguments)

    def around(name: str, real: Callable[..., bytes | None]) -> Callable[..., bytes | None]:
        def call(*raw: int) -> bytes | None:
            arguments = given.pop()
            tensors: list[torch.Tensor] = []
            before = [_copy(argument, tensors) for argument in arguments]
            fault = real(*raw)
            after = [_copy(tensor, []) for tensor in tensors]
            if fault is None:
                calls.append(Call(name, FUNCTIONS[name].parameters, before, after))  # pyright: ignore[reportArgumentType]
            return fault

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Function, "given", noted)
        for name, real in list(functions.items()):
            patch.setitem(functions, name, around(name, real))
        run()
    return calls


def write(calls: list[Call], path: Path) -> None:
    """Put them into a file that ``replay.cpp`` reads."""
    with path.open("wb") as file:
        for call in calls:
            arguments = [
                part
                for parameter, value in zip(call.parameters, call.before, strict=True)
                for part in _argument(parameter, value)
            ]
            arguments.append(_number("i", THREADS))
            name = call.name.encode()
            file.write(struct.pack("<q", len(name)) + name + struct.pack("<q", len(arguments)) + b"".join(arguments))


def read(calls: list[Call], path: Path) -> list[tuple[str, list[torch.Tensor]]]:
    """What the other machine says of each call, and its tensors behind it."""
    results = []
    with path.open("rb") as file:
        for call in calls:
            (length,) = struct.unpack("<q", file.read(8))
            said = file.read(length).decode()
            tensors = []
            for tensor in call.after:
                data = bytearray(file.read(tensor.numel() * tensor.element_size()))
                flat = torch.frombuffer(data, dtype=tensor.dtype) if data else tensor.new_empty(0)
                tensors.append(flat.view(tensor.shape))
            results.append((said, tensors))
    return results


def _copy(value: object, tensors: list[torch.Tensor]) -> object:
    """A tensor's contents; or, where a result goes over an argument, which of the call's tensors it is."""
    if not isinstance(value, torch.Tensor):
        return value
    for place, tensor in enumerate(tensors):
        if value.numel() and value.data_ptr() == tensor.data_ptr() and value.shape == tensor.shape:
            return _Again(place)
    tensors.append(value)
    return value.detach().clone(memory_format=torch.contiguous_format)


def _argument(parameter: Parameter, value: object) -> list[bytes]:
    if value is None:
        return [struct.pack("<q", ord("n"))]
    if isinstance(value, _Again):
        assert parameter.mark != "~", "what has strides of its own is read alone"
        return [_number("a", value.place)]
    if isinstance(value, torch.Tensor):
        data = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        buffer = struct.pack("<qq", ord("b"), len(data)) + data
        strides = value.stride()[-len(parameter.places) : -1] if parameter.mark == "~" else ()
        return [buffer, *(_number("i", stride) for stride in strides)]
    if isinstance(value, torch.dtype):
        return [_number("i", int(value == torch.bfloat16))]
    return [_number("f" if parameter.kind == "float" else "i", value)]  # pyright: ignore[reportArgumentType]


def _number(kind: str, value: float) -> bytes:
    return struct.pack("<q", ord(kind)) + struct.pack("<f" if kind == "f" else "<q", value)
