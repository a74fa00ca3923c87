"""Programs against their tests, and programs that would rather have the verdict."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.core.errors import UserError
from leyden.core.sandbox.checks import check_functions, check_outputs
from leyden.core.sandbox.probe import try_to_escape
from leyden.core.sandbox.referee import ProgramEnded, pack, unpack
from leyden.core.sandbox.run import Limits, SandboxUnavailableError

LIMITS = Limits(wall_seconds=60, output_bytes=1 << 20)


@pytest.fixture(scope="module")
def sandbox():
    try:
        try_to_escape()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))


def check(program, *tests, **more):
    return check_functions(program, tests, limits=LIMITS, **more)


RIGHT = """
import collections
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
def sort(numbers): numbers.sort()
def count(n): yield from range(n)
def fail(): raise KeyError("no")
def tally(text): return collections.Counter(text)
def apply(function, value): return function(value)
def double(x): print("noise", x); return 2 * x
def echo(value): return value
if __name__ == "__main__":
    raise SystemExit(input())
"""


@pytest.mark.usefixtures("sandbox")
def test_a_right_program_passes():
    result = check(
        RIGHT,
        "one, other = Stack(), Stack()\none.push(3)\nassert len(one) == 1 and 3 in one and one != other and one == one",
        "numbers = [3, 1]\nsort(numbers)\nassert numbers == [1, 3]",
        "assert list(count(3)) == [0, 1, 2]",
        "try:\n    fail()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError",
        "assert tally('aab') == {'a': 2, 'b': 1} and apply(double, 4) == 8 and math.isclose(double(0.1), 0.2)",
        "for value in (1 << 200, 1.5, 'ä', (1, [2]), {1: {2}}, None, b'x', 1j, range(3)): assert echo(value) == value",
    )
    assert (result.status, result.passed, result.total, result.right) == ("ok", 6, 6, True), result.reason
    assert result.reason == "6 of 6 tests passed"


@pytest.mark.usefixtures("sandbox")
def test_the_first_test_that_fails_is_named():
    result = check("def f(x): return x", "assert f(1) == 1", "y = f(2)\nassert y == 3, 'three'", "assert f(0)")
    assert (result.status, result.passed, result.total, result.right) == ("failed", 1, 3, False)
    told = "1 of 3 tests passed; the first that did not: assert y == 3, 'three' (AssertionError: three)"
    assert result.reason == told


FORGERIES = {
    "exits with success": "import sys\ndef f(x): sys.exit(0)",
    "exits the process": "import os\ndef f(x): os._exit(0)",
    "exits when it is loaded": "import os\nos._exit(0)",
    "writes a verdict": """
import json, os
for number in range(64):
    try:
        os.write(number, json.dumps({"passed": True}).encode() + b"\\n" + json.dumps({"done": True}).encode() + b"\\n")
    except OSError:
        pass
def f(x): return 0
""",
    "equals everything": """
class Any:
    __eq__ = __lt__ = __le__ = __contains__ = lambda self, other: True
    __sub__ = __rsub__ = __abs__ = lambda self, *other: 0
    __iter__ = lambda self: iter([0])
def f(x): return Any()
""",
    "changes Python": """
import builtins, math, operator
builtins.abs = builtins.all = math.isclose = math.fabs = lambda *args, **named: 0
class str(builtins.str): __eq__ = lambda self, other: True
def isclose(*args): return True
def f(x): return str("?")
""",
    "reads its tests": """
import gc, os, sys
def f(x):
    texts = [str(item) for item in gc.get_objects()]
    texts += [name for name in dir(sys._getframe(3))]
    for number in range(64):
        try:
            texts.append(os.pread(number, 1 << 20, 0).decode())
        except OSError:
            pass
    return 12_345 if any("".join(["12_", "345"]) in text for text in texts) else 0
""",
    "ends its tests": "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGTERM)",
    "ends all": "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
    "breaks the channel": "import os\ndef f(x): os.closerange(0, 64)",
    "writes no message": """
import os
for number in range(3, 64):
    try:
        os.write(number, b"x" * 99)
    except OSError:
        pass
""",
}
TESTS = (
    "assert f(1) == 12_345",
    "assert abs(f(1) - 12_345) < 1 and math.isclose(f(1), 12_345)",
    "assert f(1) > 12_344 and 12_345 in f([])",
)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("how", FORGERIES)
def test_no_program_forges_its_verdict(how):
    result = check(FORGERIES[how], *TESTS)
    assert result.status in ("failed", "killed") and result.passed == 0 and not result.right, result.reason


@pytest.mark.usefixtures("sandbox")
def test_what_the_setup_has_is_trusted_and_no_solution():
    setup = "from math import fabs\ndef f(x):\n    'To be written.'\n    return 2"
    test = "def check(candidate):\n    assert fabs(candidate(1) - 2) < 0.1"
    right = check("def f(x): return x + 1", test, setup=setup, entry_point="f")
    assert right.right
    forged = check("fabs = lambda x: 0\ndef f(x): return 9", test, setup=setup, entry_point="f")
    assert not forged.right
    empty = check("", test, setup=setup, entry_point="f")
    assert not empty.right and "NameError" in empty.reason


@pytest.mark.usefixtures("sandbox")
def test_programs_that_do_not_run():
    assert "IndentationError" in check(" def", "assert f(1)").reason
    result = check_functions("while True: pass", ["assert f(1)"], limits=Limits(wall_seconds=0.5))
    assert (result.status, result.passed) == ("timed out", 0)
    result = check("def f(x): return bytearray(1 << 40)", "assert f(1)")
    assert result.status == "out of memory"


@pytest.mark.usefixtures("sandbox")
def test_tests_that_are_none():
    with pytest.raises(UserError, match="there are none"):
        check("x = 1")
    with pytest.raises(UserError, match="the tests are at fault, not the program: SyntaxError"):
        check("x = 1", "assert (")
    with pytest.raises(UserError, match="at fault, not the program: ModuleNotFoundError"):
        check("x = 1", "assert x", setup="import no_such_module")


@pytest.mark.usefixtures("sandbox")
def test_what_a_program_writes():
    cases = [("2\n", "4\n"), ("5", "10"), ("0", "0  \n\n")]
    assert check_outputs("print(2 * int(input()))", cases, limits=LIMITS).right
    result = check_outputs("n = int(input())\nprint(n + 2 if n else 1 / n)", cases, limits=LIMITS)
    assert (result.status, result.passed, result.total) == ("failed", 1, 3)
    assert result.reason == "1 of 3 outputs are as expected; on input 2 it writes something else than expected"
    result = check_outputs("print(1 / int(input()))", cases[2:], limits=LIMITS)
    assert "on input 1 it ended with code 1 (ZeroDivisionError: division by zero)" in result.reason
    with pytest.raises(UserError, match="there are none"):
        check_outputs("", [])


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.complex_numbers()
)
keys = st.one_of(st.integers(), st.text(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner, inner), st.dictionaries(keys, inner), st.sets(keys), st.frozensets(keys)
    ),
    max_leaves=20,
)


@settings(max_examples=30)
@given(values)
def test_plain_data_passes_as_it_is(value):
    def same(one, other):
        return type(one) is type(other) and (one == other or repr(one) == repr(other))

    assert same(unpack(pack(value, id), id), value)


@settings(max_examples=30)
@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=9)),
        lambda inner: st.one_of(
            st.lists(inner),
            st.dictionaries(st.sampled_from(["list", "dict", "object", "range", "bytes", "set", "x"]), inner),
        ),
    )
)
def test_nothing_that_is_sent_does_more_than_end_the_program(message):
    with contextlib.suppress(ProgramEnded):
        unpack(message, lambda number: math.nan)
