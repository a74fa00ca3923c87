"""Correctness of programs: their tests, run in the sandbox."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from leyden.align.rewards.reward import Reward
from leyden.core.errors import UserError
from leyden.core.sandbox.checks import CHECK_LIMITS, check_functions, check_outputs
from leyden.core.sandbox.run import Limits
from leyden.evaluate.harness.code_answers import program_of


def grade_code(
    response: str,
    tests: Any,
    *,
    prompt: str = "",
    entry_point: str | None = None,
    setup: str | None = None,
    limits: Limits = CHECK_LIMITS,
) -> Reward:
    """1 where the response's program passes every test, 0 otherwise; ``passed`` is the share that it passes.

    Args:
        response: a program in Python, alone or in a fenced block, or what goes on where a prompt in Python ends.
        tests: a text in Python or several, each a test, as MBPP and HumanEval have them; or a list of
            ``{"input": text, "output": text}`` for a program that reads and writes.
        prompt: what was asked.
        entry_point: the name of the function that is tested.
        setup: Python that the tests need. Left out where there is an entry point, the prompt, if it is Python.
        limits: of all tests of functions together, or of each run of a program.

    Raises:
        UserError: the tests have another form, or are no Python.
        SandboxUnavailableError: there is no sandbox.
    """
    program = program_of(response, prompt, entry_point)
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, Sequence) or not any(tests):
        what = "is empty" if isinstance(tests, Sequence) else f"is {type(tests).__name__}"
        raise UserError(f"'tests' {what}; it has to be a text, or a list of texts or of inputs with outputs.")
    if all(isinstance(test, str) for test in tests):
        if setup is None:
            setup = prompt if entry_point is not None and program.startswith(prompt) else ""
        checked = check_functions(program, tests, setup=setup, entry_point=entry_point, limits=limits)
    elif all(isinstance(test, Mapping) and {"input", "output"} <= set(test) for test in tests):
        cases = [(str(test["input"]), str(test["output"])) for test in tests]
        checked = check_outputs(program, cases, limits=limits)
    else:
        raise UserError("'tests' has to be all texts, or all objects with 'input' and 'output'.")
    components = {"correct": float(checked.right), "passed": checked.passed / checked.total}
    return Reward(float(checked.right), components, checked.reason)


def limits_of(seconds: float) -> Limits:
    """The limits of tests that may take so long."""
    return replace(CHECK_LIMITS, wall_seconds=seconds, cpu_seconds=seconds)
