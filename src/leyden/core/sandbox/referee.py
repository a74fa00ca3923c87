"""Runs inside the sandbox, as a source text: a program in one process, its tests in another.

The program is untrusted, and so it must not share an interpreter with its tests: it could end the process with the code
of success, change what ``==`` means, or read what is expected of it. The process that runs the tests has the pipe that
the verdict goes over and the tests themselves; it reads these after the program's process has been forked. What passes
between the two are calls with plain data, the answers to them, and numbers that stand for the program's objects. None
of it is executed, and an object of the program's never equals plain data.

Standard input: ten digits, the length of the program in bytes; the program; ``{"setup": text, "tests": [text]}``.
Standard output: a line of JSON a test, then one with ``"done"``.
"""

import builtins
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Never

_LONGEST_MESSAGE = 64 << 20
_MOST_DRAWN = 1_000_000
"""Items that are taken of an iterator that the program returns."""
_OF_ONE = (
    *("len", "getitem", "setitem", "delitem", "iter", "next", "str", "repr"),
    *("abs", "neg", "int", "float", "enter", "exit"),
)
"""Special methods of the program's objects that tests may use."""
_OF_TWO = (
    *("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow"),
    *("and", "or", "xor"),
)
"""Those that they may use between two objects of the program's. With a number beside it an object would be told what is
expected, and could answer that the difference is 0."""


class ProgramEnded(BaseException):
    """The program's process is gone, or does not answer as it should; no error of a call, which a test may catch."""


class Channel:
    """Messages in JSON, each behind its length, over two pipes."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write

    def send(self, message: Any) -> None:
        """Send one message."""
        data = json.dumps(message).encode()
        view = memoryview(b"%10d" % len(data) + data)
        while view:
            view = view[os.write(self._write, view) :]

    def receive(self) -> Any:
        """The next message.

        Raises:
            ProgramEnded: the other side is gone, or sent something else.
        """
        try:
            length = int(self._exactly(10))
            if not 0 <= length <= _LONGEST_MESSAGE:
                raise ValueError
            return json.loads(self._exactly(length))
        except (ValueError, RecursionError, OSError):
            raise ProgramEnded("the program has ended, or broke off the connection to its tests") from None

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self._read, min(length, 1 << 20))
            if not part:
                raise ValueError("end of the pipe")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def pack(value: Any, refer: Callable[[Any], int]) -> Any:
    """A value as JSON has it; what is no plain data becomes the number that ``refer`` gives it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Stand):
        return {"object": refer(value)}
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.hex()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item, refer) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key, refer), pack(item, refer)] for key, item in value.items()]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Iterator):
        drawn = [pack(item, refer) for _, item in zip(range(_MOST_DRAWN), value, strict=False)]
        return {"iterator": drawn}
    return {"object": refer(value)}


_PLAIN: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": lambda pairs: dict(map(tuple, pairs)),
    "range": lambda bounds: range(*bounds),
    "iterator": iter,
    "complex": lambda parts: complex(*parts),
}


def unpack(packed: Any, resolve: Callable[[int], Any]) -> Any:
    """The value of what :func:`pack` made; ``resolve`` gives the object of a number.

    Raises:
        ProgramEnded: nothing that it could have made.
    """
    if not isinstance(packed, dict):
        return packed
    try:
        ((kind, content),) = packed.items()
        if kind == "object":
            return resolve(int(content))
        if kind in ("bytes", "bytearray"):
            return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(content)
        items = [
            [unpack(part, resolve) for part in item] if kind == "dict" else unpack(item, resolve) for item in content
        ]
        return _PLAIN[kind](items)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ProgramEnded("the program sent its tests what is no value") from None


# The program's side.


def serve(program: str, channel: Channel) -> None:
    """Execute the program, then answer requests for its names and calls of its objects."""
    module = type(sys)("solution")
    sys.modules["solution"] = module
    objects: list[Any] = []

    def refer(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def answer(request: dict[str, Any]) -> Any:
        if "name" in request:
            return pack(getattr(module, request["name"]), refer)
        if "attribute" in request:
            return pack(getattr(objects[request["of"]], request["attribute"]), refer)
        args = [unpack(item, objects.__getitem__) for item in request["args"]]
        named = {name: unpack(item, objects.__getitem__) for name, item in request["named"].items()}
        result = objects[request["call"]](*args, **named)
        packed = pack(result, refer)
        return {"changed": [pack(item, refer) for item in args]} if result is None and args else packed

    channel.send(_answered(lambda: exec(compile(program, "solution.py", "exec"), module.__dict__)))
    while True:
        request = channel.receive()
        channel.send(_answered(lambda asked=request: answer(asked)))


def _answered(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"result": call()}
    except ProgramEnded:
        raise
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        return {"raised": names, "text": str(error)[:500]}


# The tests' side.


class Program:
    """The program, as its tests know it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def begin(self) -> None:
        """Wait until it has been executed.

        Raises:
            Exception: it raised one.
        """
        self._answer()

    def named(self, name: str) -> Any:
        """What the program calls by a name.

        Raises:
            AttributeError: nothing.
        """
        return self._ask({"name": name})

    def attribute(self, number: int, name: str) -> Any:
        """An attribute of an object."""
        return self._ask({"of": number, "attribute": name})

    def call(self, number: int, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call an object. Lists, dicts and sets that it was given are as it left them, where it returns None."""
        sent = [pack(value, _number_of) for value in args]
        self._channel.send(
            {"call": number, "args": sent, "named": {name: pack(value, _number_of) for name, value in named.items()}}
        )
        answer = self._answer()
        if not (isinstance(answer, dict) and "changed" in answer):
            return unpack(answer, self._object)
        for value, after in zip(args, unpack({"list": answer["changed"]}, self._object), strict=False):
            _become(value, after)
        return None

    def _ask(self, request: dict[str, Any]) -> Any:
        self._channel.send(request)
        return unpack(self._answer(), self._object)

    def _answer(self) -> Any:
        answer = self._channel.receive()
        if not isinstance(answer, dict) or not {"result", "raised"} & set(answer):
            raise ProgramEnded("the program sent its tests what is no answer")
        if "result" in answer:
            return answer["result"]
        kinds = [getattr(builtins, str(name), None) for name in answer["raised"]]
        errors = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
        try:
            raise errors[0](str(answer.get("text")))
        except (TypeError, IndexError):  # one that needs other arguments, or none of Python's own
            raise RuntimeError(f"{answer['raised'][0]}: {answer.get('text')}") from None

    def _object(self, number: int) -> "Stand":
        return Stand(self, number)


def _number_of(value: Any) -> int:
    if isinstance(value, Stand):
        return object.__getattribute__(value, "number")
    raise TypeError(f"tests can hand plain data to a program, and no {type(value).__name__}")


def _become(value: Any, after: Any) -> None:
    if type(value) is not type(after):
        return
    if isinstance(value, list | bytearray):
        value[:] = after
    elif isinstance(value, dict | set):
        value.clear()
        value.update(after)


class Stand:
    """Stands for an object of the program. It equals other objects of the program alone, if these say so."""

    def __init__(self, program: Program, number: int) -> None:
        self.program, self.number = program, number

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.program.call(self.number, args, named)

    def __getattr__(self, name: str) -> Any:
        return self.program.attribute(self.number, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stand) and bool(self.program.attribute(self.number, "__eq__")(other))

    def __hash__(self) -> int:
        return self.program.attribute(self.number, "__hash__")()


def _forwarded(name: str) -> Callable[..., Any]:
    return lambda self, *args: self.program.attribute(self.number, name)(*args)


def _between(name: str) -> Callable[[Stand, object], Any]:
    forward = _forwarded(name)
    return lambda self, other: forward(self, other) if isinstance(other, Stand) else NotImplemented


for _name in _OF_ONE:
    setattr(Stand, f"__{_name}__", _forwarded(f"__{_name}__"))
for _name in _OF_TWO:
    setattr(Stand, f"__{_name}__", _between(f"__{_name}__"))


def run_tests(given: dict[str, Any], program: Program, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run each test, and tell of each whether it passed."""
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        codes = [compile(test, "test", "exec") for test in given["tests"]]
        exec(compile(given["setup"], "setup", "exec"), space)
    except Exception as error:
        tell({"broken": f"{type(error).__name__}: {error}"})
        return
    try:
        program.begin()
        _take_names(given["entry_point"], codes, program, space)
    except (Exception, ProgramEnded) as error:
        tell({"program": f"the program does not run ({type(error).__name__}: {error})"})
        return
    for code, test in zip(codes, given["tests"], strict=True):
        try:
            exec(code, space)
            tell({"passed": True})
        except (Exception, ProgramEnded) as error:
            tell({"passed": False, "reason": _where(error, test)})
    tell({"done": True})


def _take_names(entry_point: str | None, codes: list[CodeType], program: Program, space: dict[str, Any]) -> None:
    """Give the tests the names that they use and have not: Python's modules, and what is the program's."""
    names = set().union(*map(_names_in, codes)) - set(space) - set(dir(builtins))
    modules = names & sys.stdlib_module_names
    for name in modules:
        space[name] = importlib.import_module(name)
    for name in sorted(names - modules) if entry_point is None else [entry_point]:
        space.pop(name, None)  # what the setup has of it is no solution
        try:
            space[name] = program.named(name)
        except AttributeError:
            continue


def _names_in(code: CodeType) -> set[str]:
    """The names that code uses beyond its own variables, with those of attributes."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))


def _where(error: BaseException, test: str) -> str:
    """The line of a test that failed, and why."""
    trace, number = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "test":
            number = trace.tb_lineno
        trace = trace.tb_next
    line = test.splitlines()[number - 1] if number else test
    said = f": {error}" if str(error) else ""
    return f"{line.strip()[:200]} ({type(error).__name__}{said[:200]})"


def main() -> Never:
    """Fork the program's process, read the tests, run them."""
    sys.set_int_max_str_digits(0)
    length = int(_read(0, 10))
    program = _read(10, length).decode("utf-8", "surrogatepass")
    (from_program, to_tests), (from_tests, to_program) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.closerange(3, from_program + 1)
        os.close(to_program)
        try:
            serve(program, Channel(from_tests, to_tests))
        finally:
            os._exit(1)
    os.close(to_tests)
    os.close(from_tests)
    given = json.loads(_read(10 + length, os.fstat(0).st_size))
    verdicts = os.dup(1)
    os.dup2(2, 1)  # what tests print is no verdict

    def tell(verdict: dict[str, Any]) -> None:
        os.write(verdicts, json.dumps(verdict).encode() + b"\n")

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        run_tests(given, Program(Channel(from_program, to_program)), tell)
    finally:
        os.kill(child, signal.SIGKILL)
    os._exit(0)


def _read(start: int, length: int) -> bytes:
    parts = []
    while length and (part := os.pread(0, length, start)):
        parts.append(part)
        start += len(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
