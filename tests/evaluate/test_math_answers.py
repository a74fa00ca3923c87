"""Answers in mathematics: what is taken for the answer, and which are the same."""

import pytest

from leyden.evaluate.harness.math_answers import (
    boxed,
    final_answer,
    gsm8k_results,
    last_number,
    math_results,
    same_answer,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so it is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1} and then \\boxed{2}", "2"),
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed 7$", "7"),
        ("\\boxed{5} \\boxed{never closed", "5"),
        ("nothing", None),
        ("\\boxed", None),
    ],
)
def test_the_last_box(text, found):
    assert boxed(text) == found


def test_an_answer_that_is_said():
    assert final_answer("We see that the final answer is $12$. I hope so.") == "$12$"
    assert final_answer("The answer is: 3\nThe answer is: 4\n") == "4"
    assert final_answer("the answer is 3, or \\boxed{5}") == "5"
    assert final_answer("who knows") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\frac12", "\\dfrac{1}{2}"),
        ("0.5", "\\frac{1}{2}"),
        ("1/2", "\\tfrac12"),
        ("-\\frac{3}{6}", "-0.5"),
        ("1,000", "1000"),
        ("1e3", "1000"),
        ("2.5E-3", "0.0025"),
        ("\\$12.50", "12.5"),
        ("50\\%", "50"),
        ("45^\\circ", "45"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("x = 4", "4"),
        ("12\\text{ cm}", "12"),
        ("\\text{Evelyn}", "Evelyn"),
        ("\\sqrt2", "\\sqrt{2}"),
        ("7.", "7"),
    ],
)
def test_equal_answers(one, other):
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("3", "4"), ("(1,2)", "(2,1)"), (None, "3"), ("", "3"), ("1e99999999", "1"), ("1/0", "2/0")]
)
def test_unequal_answers(one, other):
    assert not same_answer(one, other)


def test_results():
    doc = {"answer": "1200"}
    assert gsm8k_results(doc, ["It is 2 * 600 = 1200.\n#### 1,200"]) == {"exact_match": 1.0, "last_number": 1.0}
    assert gsm8k_results(doc, ["so $1,200.00 in all"]) == {"exact_match": 0.0, "last_number": 1.0}
    assert gsm8k_results(doc, ["#### 12"]) == {"exact_match": 0.0, "last_number": 0.0}
    assert gsm8k_results(doc, [""]) == {"exact_match": 0.0, "last_number": 0.0}
    assert last_number("from 3 to -4.5") == "-4.5"
    assert math_results({"solution": "thus \\boxed{3}"}, ["I say \\boxed{3.0}"]) == {"exact_match": 1.0}
    assert math_results({"solution": "thus \\boxed{3}"}, ["3"]) == {"exact_match": 0.0}
