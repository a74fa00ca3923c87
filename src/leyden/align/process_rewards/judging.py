"""Labels of steps by a judge, which is asked for the first wrong step of a solution."""

from collections.abc import Sequence
from pathlib import Path

from leyden.align.process_rewards.completing import Candidate
from leyden.align.rewards.judge import Judge, ask_judge, judging_request
from leyden.data.label.judge import json_objects
from leyden.data.label.language_model import ModelRequest


def judged_first_wrong(candidates: Sequence[Candidate], judge: Judge, cache: Path) -> list[int | str]:
    """Of each solution the number of its first wrong step, from 1, or 0 where none is; in place of it, why it is not
    known.

    Args:
        candidates: any.
        judge: who judges; its rubric is not read.
        cache: a folder of its answers.

    Raises:
        UserError: the judge's endpoint cannot be reached, or still fails after all retries. Its answers are kept.
    """

    def request(place: int, seed: int) -> ModelRequest:
        return _request(candidates[place], judge, seed)

    def read(place: int, answer: str) -> int | None:
        return first_wrong_in(answer, len(candidates[place].steps))

    found = ask_judge(request, len(candidates), read, judge, cache, "first wrong step")
    return [f"judge: {reason}" if verdict is None else verdict for verdict, reason in found]


def first_wrong_in(answer: str, num_steps: int) -> int | None:
    """The ``first_wrong`` of the last JSON object that has one, from 0 to ``num_steps``; else None."""
    told = [found["first_wrong"] for found in json_objects(answer) if "first_wrong" in found]
    if not told or isinstance(told[-1], bool) or not isinstance(told[-1], int) or not 0 <= told[-1] <= num_steps:
        return None
    return told[-1]


def _request(one: Candidate, judge: Judge, seed: int) -> ModelRequest:
    steps = "\n\n".join(f"[step {number}]\n{step}" for number, step in enumerate(one.steps, 1))
    question = (
        "Find the first step of this solution that is wrong: that contains a mistake, or follows from nothing before "
        "it. A step that builds on an earlier mistake is not the first. Check each step in turn.\n\n"
        f"======== the problem\n{one.prompt.text}\n======== the solution\n{steps}\n========\n\n"
        f"End with one JSON object: the number of the first wrong step, from 1 to {len(one.steps)}, or 0 if every step "
        'is right, for example {"first_wrong": 0}.'
    )
    return judging_request(question, judge, seed)
