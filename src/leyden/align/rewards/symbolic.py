"""Runs in a process with limits: whether two answers in LaTeX are the same by math-verify."""

from collections.abc import Callable


def make() -> Callable[[str, str], bool]:
    """The function that compares an answer with a reference."""
    from math_verify import parse, verify

    def same(answer: str, reference: str) -> bool:
        # Its own limits of time are by signals; the process has one.
        gold, found = (parse(f"\\boxed{{{text}}}", parsing_timeout=0) for text in (reference, answer))
        return bool(gold) and bool(found) and verify(gold, found, timeout_seconds=0)

    return same
