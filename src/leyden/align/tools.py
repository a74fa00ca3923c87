"""Tools that an environment may offer between the turns of a rollout: a calculator, and Python in the sandbox.

Each takes what a model wrote and gives what it is told; what a model writes wrongly is answered in words, and raises
nothing.
"""

import ast
import operator
from collections.abc import Callable, Mapping

from leyden.core.sandbox.run import PYTHON, Limits, run

_LONGEST = 200
_SHOWN = 1000
_LIMITS = Limits(wall_seconds=5.0, cpu_seconds=5.0, memory_bytes=256 << 20, processes=4)
_LARGEST_POWER = 64
_MOST_DIGITS = 40
_BINARY: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculate(text: str) -> str:
    """The value of an arithmetic expression: numbers, brackets and ``+ - * / // % **``; else why there is none."""
    if len(text) > _LONGEST:
        return f"error: longer than {_LONGEST} characters"
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
        written = str(int(value)) if int(value) == value else str(value)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, TypeError):
        return "error: not an arithmetic expression"
    return written if len(written) <= _MOST_DIGITS else "error: too large"


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # pyright: ignore[reportReturnType] - checked in the line above
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return -_value(node.operand) if isinstance(node.op, ast.USub) else _value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > _LARGEST_POWER or abs(left) > 10**_LARGEST_POWER):
            raise OverflowError
        return _BINARY[type(node.op)](left, right)
    raise ValueError


def run_python(code: str, limits: Limits = _LIMITS) -> str:
    """What a program writes, its beginning where it is long; else why it ended.

    Raises:
        SandboxUnavailableError: the kernel gives no sandbox; nothing was run.
    """
    found = run([PYTHON, "program.py"], files={"program.py": code.encode()}, limits=limits)
    if found.status == "ok":
        return found.stdout.decode("utf-8", "replace")[:_SHOWN]
    last = found.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [found.reason]
    return f"error: {last[0][:_SHOWN]}"
