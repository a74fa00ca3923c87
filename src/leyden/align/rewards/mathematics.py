"""Correctness in mathematics: the final answer of a response against a reference.

The final answer is the last box; else what stands behind the last ``####``; else what the response says that the answer
is; else its last number. Equal texts and numbers are told at once, all else by math-verify, which reads LaTeX and
compares by symbols; since input in LaTeX can keep an algebra system busy for ever, that runs in a process with limits.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from leyden.align.rewards.reward import Reward
from leyden.core.errors import UserError
from leyden.core.limited import LimitedProcess, LimitReached
from leyden.evaluate.harness.math_answers import boxed, final_answer, last_number, same_answer

_SYMBOLIC = Path(__file__).with_name("symbolic.py")
_MARKED = re.compile(r"####[ \t]*(.+)")
_NUMBER = re.compile(r"-?\d{1,50}(?:\.\d{1,50})?")
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LONGEST = 1000
"""Letters of an answer; a longer one is no final answer."""
_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class FinalAnswer:
    """What a text gives as its answer.

    Attributes:
        text: the answer.
        how: ``box``, ``mark`` (``####``), ``said`` or ``number`` (the last one).
    """

    text: str
    how: str


def find_answer(text: str) -> FinalAnswer | None:
    """The final answer of a text; None where it has none."""
    inside = boxed(text)
    if inside is not None:
        return FinalAnswer(inside, "box")
    marked = _MARKED.findall(text)
    if marked:
        return FinalAnswer(_bare(marked[-1]), "mark")
    said = final_answer(text)
    if said is not None:
        return FinalAnswer(_bare(said), "said")
    number = last_number(text)
    return None if number is None else FinalAnswer(number, "number")


def reference_answer(reference: str) -> str:
    """What a reference gives as the answer: a solution's box or mark, or all of it where it is the answer alone."""
    inside = boxed(reference)
    if inside is not None:
        return inside
    marked = _MARKED.findall(reference)
    return _bare(marked[-1] if marked else reference)


def _bare(text: str) -> str:
    """An answer without the signs of mathematics around it, and without the commas that group a number's digits."""
    text = text.strip().strip("$").strip().removeprefix("\\$")
    return text.replace(",", "") if _GROUPED.fullmatch(text) else text


class MathReward:
    """Grades responses in mathematics. Threads may share one; comparisons by symbols run one after the other.

    Args:
        seconds: of the processor, for one comparison.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._compare = LimitedProcess(_SYMBOLIC, seconds=seconds, memory_bytes=_MEMORY_BYTES)

    def grade(self, response: str, reference: str) -> Reward:
        """1 for the right final answer, 0 for another or none; ``marked``: whether it stands in a box or behind a mark.

        Raises:
            UserError: the reference is empty.
        """
        gold = reference_answer(reference)
        if not gold:
            raise UserError("'reference' is empty; it should hold the right answer, or a solution with it in a box.")
        found = find_answer(response)
        if found is None:
            return Reward(0.0, {"correct": 0.0, "marked": 0.0}, "no answer was found")
        right, why = self.same(found.text, gold)
        components = {"correct": float(right), "marked": float(found.how in ("box", "mark"))}
        return Reward(float(right), components, f"the answer ({found.how}) is {found.text[:100]}: {why}")

    def same(self, answer: str, gold: str) -> tuple[bool, str]:
        """Whether two answers are the same, and by what it is told."""
        if same_answer(answer, gold):
            return True, "equal"
        if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(gold):
            return False, f"not {gold}"
        return self.same_by_symbols(answer, gold)

    def same_by_symbols(self, answer: str, gold: str) -> tuple[bool, str]:
        """Whether two answers are the same by math-verify."""
        if len(answer) > _LONGEST:
            return False, f"it has more than {_LONGEST:,} letters"
        try:
            same = self._compare.call(answer, gold)
        except LimitReached as limit:
            return False, f"the comparison with {gold[:100]} was ended: {limit}"
        except Exception as error:  # of a library, on text that a model wrote
            return False, f"it could not be compared with {gold[:100]} ({type(error).__name__})"
        return same, "equal by its symbols" if same else f"not {gold[:100]}"

    def close(self) -> None:
        """End the process that compares."""
        self._compare.close()
