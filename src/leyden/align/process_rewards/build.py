"""``leyden steps``: problems, or solutions of them, to solutions whose steps have labels.

``solutions.jsonl`` has those that a process reward model learns from, ``left_out.jsonl`` the others with the reason,
``report.json`` the counts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from leyden import __version__
from leyden.align.process_rewards.completing import Candidate, CompletionSettings, first_wrong, step_chances
from leyden.align.process_rewards.judging import judged_first_wrong
from leyden.align.process_rewards.solutions import begun_responses, steps_between
from leyden.align.prompts.rows import PromptRow
from leyden.align.rewards.judge import Judge
from leyden.align.rewards.mathematics import MathReward
from leyden.align.rewards.rows import TOGETHER, RowSettings, grader
from leyden.align.sampling.asking import Drawing, draw_responses
from leyden.align.sampling.pivots import Policy
from leyden.align.sampling.writing import write_json, write_rows
from leyden.core.errors import UserError
from leyden.core.log import logger
from leyden.core.sandbox.probe import try_to_escape
from leyden.data.label.language_model import LanguageModel

_log = logger(__name__)

SOLUTIONS, LEFT_OUT, REPORT = "solutions.jsonl", "left_out.jsonl", "report.json"
_CUT = "it was cut"


@dataclass(frozen=True)
class StepSettings:
    """How solutions are drawn and their steps labelled.

    Attributes:
        drawing: of solutions, to prompts that come without one.
        completions: by which steps are labelled; None: by the judge alone.
        judge: by which steps are labelled; None: by completions alone. Of both, a solution is kept where they agree.
    """

    drawing: Drawing
    completions: CompletionSettings | None
    judge: Judge | None

    def __post_init__(self) -> None:
        if self.completions is None and self.judge is None:
            raise UserError(
                "steps are labelled by completions (samples of 1 or more), by a judge (--judge-endpoint URL "
                "--judge-name NAME), or by both; give one of them."
            )


def build_steps(
    rows: Sequence[PromptRow],
    model: LanguageModel,
    policy: Policy,
    rewards: RowSettings,
    settings: StepSettings,
    folder: Path,
) -> dict[str, Any]:
    """Draw solutions where there are none, label their steps, and write what is named above; returns the report.

    A step is right up to the first one that is wrong; nothing is said of the steps behind that one, which may follow
    from it. By completions and a judge together, a solution is kept where both have the same first wrong step, or both
    none (Qwen2.5-Math-PRM, arXiv 2501.07301, section 3.1).

    What is drawn, found and judged is kept in ``answers/``, ``chances/`` and ``judge-answers/``: the same call after a
    kill goes on from there.

    Args:
        rows: prompts. One with ``steps`` or a ``response`` is a solution; of the others some are drawn.
        model: draws solutions.
        policy: the same model, which completes.
        rewards: of a kind that grades a row by itself; a solution with a reward of 1 is right.
        settings: how.
        folder: is made if it is not there.

    Raises:
        UserError: the kind looks at several rows at once; the judge cannot be asked; there is no sandbox for code.
    """
    if rewards.kind in TOGETHER:
        raise UserError(
            f"the reward '{rewards.kind}' looks at several responses at once; steps need one of the others."
        )
    if rewards.kind == "code":
        try_to_escape()
    with _grading(rewards) as grade:
        told = _responses(rows, model, settings.drawing, folder)
        candidates, left_out = _candidates(told, grade)
        chances = None
        if settings.completions is not None:
            chances = step_chances(candidates, policy, grade, settings.completions, folder / "chances")
    judged = None
    if settings.judge is not None:
        judged = judged_first_wrong(candidates, settings.judge, folder / "judge-answers")
    made = {
        "model": policy.identity,
        "reward": rewards.kind,
        "completions": settings.completions and asdict(settings.completions),
        "judge": settings.judge and settings.judge.model.identity,
        "leyden": __version__,
    }
    kept: list[dict[str, Any]] = []
    for number, one in enumerate(candidates):
        by_completions = None if chances is None else chances[number]
        by_judge = None if judged is None else judged[number]
        row, why = _labelled(one, by_completions, by_judge, settings, policy.identity)
        (kept if why is None else left_out).append(row if why is None else {**row, "why": why})
    report = {**_report(rows, kept, left_out), **made}
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / SOLUTIONS, kept)
    write_rows(folder / LEFT_OUT, left_out)
    write_json(folder / REPORT, report)
    return report


@contextmanager
def _grading(rewards: RowSettings) -> Iterator[Callable[[dict[str, Any]], float | None]]:
    """The reward of a row; None where it has none, of which the first is logged."""
    mathematics, told = MathReward(rewards.seconds), list[str]()
    grade = grader(rewards, mathematics)

    def reward(row: dict[str, Any]) -> float | None:
        try:
            return grade(row).reward
        except UserError as error:
            if not told:
                _log.warning("a solution cannot be graded: %s", error)
            told.append(str(error))
            return None

    try:
        yield reward
    finally:
        mathematics.close()


def _responses(
    rows: Sequence[PromptRow], model: LanguageModel, drawing: Drawing, folder: Path
) -> list[tuple[PromptRow, list[str], bool]]:
    """Each solution with its prompt, and whether it was cut: those that are given, and those that are drawn."""
    found: list[tuple[PromptRow, list[str], bool]] = []
    asked: dict[str, PromptRow] = {}
    for one in rows:
        steps, response = one.row.get("steps"), one.row.get("response")
        if isinstance(steps, list | tuple) and all(isinstance(step, str) and step.strip() for step in steps):
            whole = "\n\n".join(step.strip() for step in steps)
            ends = accumulate(len(step.strip()) + 2 for step in steps)
            found.append((one, [whole[:end] for end in ends], False))
        elif isinstance(response, str):
            found.append((one, begun_responses(response), one.row.get("finish") == "length"))
        else:
            asked.setdefault(one.id, one)
    if asked:
        drawn = draw_responses(list(asked.values()), model, drawing, folder / "answers", "solutions")
        found += [(one.prompt, begun_responses(one.text), one.finish != "stop") for one in drawn]
    return found


def _candidates(
    told: Sequence[tuple[PromptRow, list[str], bool]], grade: Callable[[dict[str, Any]], float | None]
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """The solutions that can be labelled, each once, and the rows of the others, with the reason."""
    candidates: list[Candidate] = []
    left_out: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for prompt, begun, was_cut in told:
        text = begun[-1] if begun else ""
        reward = grade({**prompt.row, "response": text}) if text and not was_cut else None
        why = _CUT if was_cut else "it says nothing" if not text else "it has no reward" if reward is None else None
        if (prompt.id, text) in seen:
            why = "a copy"
        seen.add((prompt.id, text))
        if why is not None:
            left_out.append({"prompt": prompt.row["prompt"], "steps": list(steps_between(begun)), "why": why})
        else:
            candidates.append(Candidate(prompt, tuple(begun), reward is not None and reward >= 1))
    return candidates, left_out


def _labelled(
    one: Candidate,
    chances: list[float] | str | None,
    judged: int | str | None,
    settings: StepSettings,
    model: str,
) -> tuple[dict[str, Any], str | None]:
    """The row of a solution, and why it is left out; None: it is kept."""
    row: dict[str, Any] = {"prompt": one.prompt.row["prompt"], "steps": list(one.steps), "right": one.is_right}
    wrong: dict[str, int] = {}
    if isinstance(chances, str):
        return row, chances
    if chances is not None and settings.completions is not None:
        row["chances"] = chances
        wrong["completions"] = first_wrong(chances, settings.completions.least)
    if isinstance(judged, str):
        return {**row, "first_wrong": wrong}, judged
    if judged is not None:
        wrong["judge"] = judged
    row["first_wrong"] = wrong
    if len(set(wrong.values())) > 1:
        return row, "completions and judge differ"
    place = next(iter(wrong.values()))
    labels = [None if place and number > place else number != place for number in range(1, len(one.steps) + 1)]
    return {**row, "labels": labels, "place": one.prompt.place, "model": model}, None


def _report(rows: Sequence[PromptRow], kept: list[dict[str, Any]], left_out: list[dict[str, Any]]) -> dict[str, Any]:
    labels = [label for row in kept for label in row["labels"]]
    return {
        "rows": len(rows),
        "solutions": len(kept) + len(left_out),
        "kept": len(kept),
        "right": sum(row["right"] for row in kept),
        "steps": len(labels),
        "labels": {"right": labels.count(True), "wrong": labels.count(False), "none": labels.count(None)},
        "left_out": dict(Counter(row["why"] for row in left_out)),
    }
