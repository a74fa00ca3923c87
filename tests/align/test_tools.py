"""The tools of environments answer everything in words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.align.tasks import Calculations
from leyden.align.tools import calculate, run_python


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("2 + 3 * 4", "14"),
        (" (2 + 3) * 4 ", "20"),
        ("-7 // 2", "-4"),
        ("7 / 2", "3.5"),
        ("6 / 2", "3"),
        ("2 ** 10", "1024"),
        ("1 / 0", "error: division by zero"),
        ("9 ** 9 ** 9", "error: not an arithmetic expression"),
        ("__import__('os')", "error: not an arithmetic expression"),
        ("True + 1", "error: not an arithmetic expression"),
        ("1 +", "error: not an arithmetic expression"),
        ("9" * 300, "error: longer than 200 characters"),
        ("10 ** 60", "error: too large"),
        ("(10 ** 64) ** 64 * (10 ** 64) ** 64", "error: not an arithmetic expression"),
        ("1e300 * 1e300", "error: not an arithmetic expression"),
        ("1e999 - 1e999", "error: not an arithmetic expression"),
        ("(-8) ** 0.5", "error: not an arithmetic expression"),
    ],
)
def test_calculate(asked: str, told: str) -> None:
    assert calculate(asked) == told


@settings(max_examples=50)
@given(st.text("0123456789+-*/%().ej_ \0x", max_size=30))
def test_calculate_raises_nothing(text: str) -> None:
    assert isinstance(calculate(text), str)


def test_python_in_the_sandbox() -> None:
    assert run_python("print(6 * 7)") == "42\n"
    assert run_python("1 / 0") == "error: ZeroDivisionError: division by zero"


def test_products_with_a_calculator() -> None:
    environment = Calculations()
    row = next(environment.prompts())
    question = row["prompt"].removeprefix("What is ").rstrip("?")
    told = environment.reply(row, [f"calc: {question}"])
    assert told is not None and environment.score(row, told).reward == 1
    assert environment.reply(row, [told]) is None
    assert not {row["prompt"] for row in environment.prompts()} & {row["prompt"] for row in environment.held_out()}
