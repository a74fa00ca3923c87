"""The published rule of MR-NIAH: which parts of an answer count, and when an answer is a refusal."""

import re
from collections.abc import Sequence

_REFUSALS = {"english": ("sorry", "no previous conversation"), "chinese": ("抱歉", "没有之前的对话")}
_NUMBER = re.compile(r"^\d+\.\s*")
_STOPS = ".。"
_CHINESE = re.compile("[\u4e00-\u9fff]")


def language(label: str) -> str:
    """``"chinese"`` where a label has Chinese characters, otherwise ``"english"``."""
    return "chinese" if _CHINESE.search(label) else "english"


def components(label: str) -> tuple[str, ...]:
    """The parts of a published label, of which each counts alike.

    The published program lists them for each of its 20 labels. This rule gives the same lists: where a label is several
    lines that each end as a sentence, its parts are the lines; otherwise they are what stands between commas and ends
    of lines. Numbers of a list and full stops are left out.
    """
    lines = [_NUMBER.sub("", line.strip()) for line in label.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.endswith(tuple(_STOPS)) for line in lines):
        parts = lines
    else:
        parts = [part for line in lines for part in re.split("[,，]", line)]
    stripped = (part.strip().rstrip(_STOPS).strip() for part in parts)
    return tuple(part for part in stripped if part)


def score(answer: str, expected: Sequence[str], language: str) -> float:
    """0 where the answer is a refusal, otherwise the share of ``expected`` that it holds, letter for letter."""
    lowered = answer.lower()
    if any(refusal in lowered for refusal in _REFUSALS[language]):
        return 0.0
    return sum(part in answer for part in expected) / len(expected)
