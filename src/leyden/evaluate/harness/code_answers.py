"""Whether an answer that is a program is the right one: its tests are run on it, in a sandbox."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from leyden.core.sandbox.checks import CHECK_LIMITS, check_functions

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)

_BEYOND = re.compile(r"\n(?=class\b|def\b|#|if\b|print\b)")
"""Where an answer that goes on with a function's body begins something else."""


def humaneval_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Of an answer to a problem of HumanEval: whether the program passes the problem's tests.

    Raises:
        SandboxUnavailableError: there is no sandbox.
    """
    program = program_of(results[0], doc["prompt"], doc["entry_point"])
    tests, setup = [doc["test"]], doc["prompt"]
    checked = check_functions(program, tests, setup=setup, entry_point=doc["entry_point"], limits=CHECK_LIMITS)
    return {"pass_at_1": float(checked.right)}


def program_of(response: str, prompt: str = "", entry_point: str | None = None) -> str:
    """The program that an answer gives.

    It is the last fenced block that defines the entry point, or else the last block, or the whole answer. A prompt that
    is itself Python comes before it, with its imports and helpers; an answer without a block that does not define the
    entry point goes on where such a prompt ends, up to the next statement of the outermost level.
    """
    blocks = _BLOCK.findall(response)
    defining = [block for block in blocks if _defines(block, entry_point)]
    program = (defining or blocks or [response])[-1]
    if not _is_python(prompt):
        return program
    goes_on = not blocks and not _defines(response, entry_point)
    return prompt + _BEYOND.split(program)[0] if goes_on else f"{prompt}\n{program}"


def _defines(text: str, name: str | None) -> bool:
    return name is not None and re.search(rf"^(?:async )?(?:def|class)\s+{re.escape(name)}\b", text, re.M) is not None


def _is_python(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
