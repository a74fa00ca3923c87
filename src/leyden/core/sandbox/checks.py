"""Programs against their tests: functions that tests call, and programs that read and write.

Neither kind lets a program reach the verdict: tests run in a process of their own (``referee.py``), and expected output
never enters the sandbox.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from leyden.core.errors import UserError
from leyden.core.sandbox.run import PYTHON, Limits, SandboxResult, Status, run

CHECK_LIMITS = Limits(output_bytes=1 << 20)
"""As :class:`Limits`, but a program may print more, since what it prints is not kept."""


@dataclass(frozen=True)
class Checked:
    """What came of a program's tests.

    Attributes:
        passed: how many tests passed.
        total: of how many.
        status: of the sandbox; ``failed`` where all ran and some failed.
        reason: one line: the first test that failed, or what ended the program.
        wall_seconds: of all runs.
    """

    passed: int
    total: int
    status: Status
    reason: str
    wall_seconds: float

    @property
    def right(self) -> bool:
        """Whether every test passed and the program kept its limits."""
        return self.status == "ok" and self.passed == self.total


@cache
def _referee() -> str:
    return Path(__file__).with_name("referee.py").read_text(encoding="utf-8")


def check_functions(
    program: str,
    tests: Sequence[str],
    *,
    setup: str = "",
    entry_point: str | None = None,
    limits: Limits = CHECK_LIMITS,
) -> Checked:
    """Run tests in Python on what a program in Python defines.

    The program is executed as a module, in a process of its own. Of its names the tests see the entry point; where none
    is named, all that they use and that neither they nor their setup nor Python has. Calls take and return plain data,
    objects of the program's classes stay with it. Iterators come as far as they go, up to a million items. A list, dict
    or set that a call was given comes back changed where the call returns None.

    Args:
        program: the source.
        tests: sources, each passed when it raises nothing; they share names. One that defines ``check``, as HumanEval's
            do, has it called with the entry point.
        setup: source that the tests need, from whoever wrote them (imports, helpers), never from the program.
        entry_point: the name that is tested.
        limits: for all tests together.

    Raises:
        UserError: there are no tests, or the setup or a test is no Python.
        SandboxUnavailableError: there is no sandbox.
    """
    if not tests:
        raise UserError("a program can only be checked against tests, and there are none.")
    if entry_point is not None:
        tests = [f"{test}\ncheck({entry_point})" if re.search(r"^def check\(", test, re.M) else test for test in tests]
    source = program.encode("utf-8", "surrogatepass")
    given = json.dumps({"setup": setup, "tests": list(tests), "entry_point": entry_point})
    stdin = b"%10d" % len(source) + source + given.encode()
    result = run([PYTHON, "-I", "-S", "-c", _referee()], stdin=stdin, limits=limits)
    lines = [json.loads(line) for line in result.stdout.split(b"\n")[:-1]]
    broken = next((line["broken"] for line in lines if "broken" in line), None)
    if broken is not None:
        raise UserError(f"the tests are at fault, not the program: {broken}.")
    passed = [line["passed"] for line in lines if "passed" in line]
    return _checked(result, lines, sum(passed), len(tests))


def _checked(result: SandboxResult, lines: list[dict[str, str]], passed: int, total: int) -> Checked:
    reasons = [line["reason"] for line in lines if "reason" in line]
    dead = next((line["program"] for line in lines if "program" in line), None)
    if result.status != "ok":
        status, reason = result.status, result.reason
    elif dead is not None:
        status, reason = "failed", dead
    elif reasons:
        status, reason = "failed", f"{passed} of {total} tests passed; the first that did not: {reasons[0]}"
    elif passed == total and any("done" in line for line in lines):
        status, reason = "ok", f"{total} of {total} tests passed"
    else:
        status, reason = "killed", "the tests were ended before all had run"
    if status == "failed" and "MemoryError" in reason:
        status = "out of memory"
    return Checked(passed, total, status, reason, result.wall_seconds)


def check_outputs(program: str, cases: Sequence[tuple[str, str]], *, limits: Limits = CHECK_LIMITS) -> Checked:
    """Run a program in Python once for every input, and compare what it writes.

    Args:
        program: the source; it is the main program, and reads standard input.
        cases: an input and the output that is expected. White space at the ends of lines and of the output is no
            difference.
        limits: for each run.

    Raises:
        UserError: there are no cases.
        SandboxUnavailableError: there is no sandbox.
    """
    if not cases:
        raise UserError("a program can only be checked against tests, and there are none.")
    files = {"program.py": program.encode("utf-8", "surrogatepass")}
    passed, seconds = 0, 0.0
    first: tuple[Status, str] | None = None
    for number, (given, expected) in enumerate(cases, 1):
        result = run([PYTHON, "-I", "-S", "program.py"], stdin=given.encode(), files=files, limits=limits)
        seconds += result.wall_seconds
        if result.status != "ok":
            first = first or (result.status, f"on input {number} {result.reason}{_last_line(result.stderr)}")
        elif _lines(result.stdout.decode(errors="replace")) == _lines(expected):
            passed += 1
        else:
            first = first or ("failed", f"on input {number} it writes something else than expected")
    total = len(cases)
    checked = Checked(passed, total, "ok", f"{total} of {total} outputs are as expected", seconds)
    if first is None:
        return checked
    return replace(checked, status=first[0], reason=f"{passed} of {total} outputs are as expected; {first[1]}")


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({said[:200]})" if said else ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
