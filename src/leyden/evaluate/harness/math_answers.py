"""Whether an answer in mathematics is the right one: the last number of GSM8K, the boxed answer of MATH.

Answers of MATH are compared as texts, after what has no meaning in LaTeX is taken out, and as numbers where both are
numbers or fractions. An answer in another form (``1/2 + 1/3`` for ``5/6``, factors in another order) counts as wrong.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

_POWER = r"[eE][-+]?\d{1,3}"
"""Of ten, as programs write it."""
_NUMBER = re.compile(rf"-?\$?\d[\d,]*(?:\.\d+)?(?:{_POWER}\b)?")
_PLAIN_NUMBER = re.compile(rf"-?(?:\d{{1,50}}(?:\.\d{{0,50}})?|\.\d{{1,50}})(?:/\d{{1,50}}|{_POWER})?")
"""Without an exponent, whose digits could fill the memory."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_SAID = re.compile(r"(?:final answer|answer) is:?\s*(.+?)(?:\.\s|\.$|\n|$)", re.IGNORECASE)
_WITHOUT_MEANING = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;:> ]|\\displaystyle|\\(?:text|mbox|mathrm)\{\s*\}"
    r"|\\?\$|\\?%|\^\{?\\circ\}?"
)
_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\{\s*([^{}]*)\}")


def last_number(text: str) -> str | None:
    """The last number of a text, without ``$`` and the commas that group its digits; None where there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").replace("$", "") if found else None


def gsm8k_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Of an answer to a question of GSM8K: ``exact_match`` of the number behind ``####``, ``last_number`` of the last.

    The same number in another form (``18.0`` for ``18``) is the same.
    """
    marked = re.search(r"####\s*(" + _NUMBER.pattern + ")", results[0])
    strict = None if marked is None else marked[1].replace(",", "").replace("$", "")
    gold = doc["answer"]
    return {
        "exact_match": float(_same_number(strict, gold)),
        "last_number": float(_same_number(last_number(results[0]), gold)),
    }


def math_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Of an answer to a problem of MATH: whether it boxes, or says to be the answer, what the solution boxes."""
    return {"exact_match": float(same_answer(final_answer(results[0]), boxed(doc["solution"])))}


def boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` of a text holds; None where there is none that is closed."""
    for match in reversed(list(_BOX.finditer(text))):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            return rest.split()[0].rstrip("$.") if rest.split() else None
        depth = 0
        for place, letter in enumerate(rest):
            depth += (letter == "{") - (letter == "}")
            if depth == 0:
                return rest[1:place]
    return None


def final_answer(text: str) -> str | None:
    """What a text gives as its answer: the last box, or else what it last says the answer to be."""
    found = boxed(text)
    if found is None:
        said = _SAID.findall(text)
        found = said[-1] if said else None
    return found


def same_answer(answer: str | None, gold: str | None) -> bool:
    """Whether two answers are equal as numbers, or as texts without what has no meaning."""
    if answer is None or gold is None:
        return False
    one, other = plain(answer), plain(gold)
    return one == other or _same_number(one, other)


def plain(answer: str) -> str:
    """An answer without spaces, sizes, units and marks that change nothing."""
    text = _WITHOUT_MEANING.sub("", answer.strip())
    unit = _UNIT.sub("", text)
    text = unit if unit.strip() else _UNIT.sub(r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*([^{\s\\])\s*([^{\s\\])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*([^{\[\s\\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    text = re.sub(r"^[A-Za-z](?:\\in|=)", "", text)
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    return text


def _same_number(one: str | None, other: str | None) -> bool:
    first, second = _number(one), _number(other)
    return first is not None and first == second


def _number(text: str | None) -> Fraction | None:
    """A whole number, a decimal (with a power of ten, too) or a fraction, in LaTeX or with a slash."""
    if text is None:
        return None
    match = re.fullmatch(r"(-?)\\frac\{(-?\d{1,50})\}\{(-?\d{1,50})\}", text)
    try:
        if match is not None:
            return Fraction(int(match[2]), int(match[3])) * (-1 if match[1] else 1)
        return Fraction(text) if _PLAIN_NUMBER.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        return None
