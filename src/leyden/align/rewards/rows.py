"""``leyden reward``: a record for every row of a file."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.align.rewards.agreement import agreement
from leyden.align.rewards.code import grade_code, limits_of
from leyden.align.rewards.instructions import grade_instructions, published_instructions
from leyden.align.rewards.judge import Judge, grade_by_judge
from leyden.align.rewards.mathematics import MathReward
from leyden.align.rewards.reward import Reward
from leyden.align.rewards.rules import Rule, grade_rules
from leyden.align.rewards.truthfulness import truthfulness
from leyden.core.errors import UserError
from leyden.core.log import progress, say
from leyden.core.sandbox.probe import try_to_escape
from leyden.core.sandbox.run import SandboxUnavailableError

if TYPE_CHECKING:
    from leyden.align.process_rewards.scorer import LearnedGrader
    from leyden.align.reward_models.scorer import RewardModel

Row = dict[str, Any]
KINDS = ("math", "exact", "agreement", "code", "ifeval", "rules", "judge", "truthfulness", "model", "process")
"""What ``--kind`` may be."""
TOGETHER = ("agreement", "judge", "truthfulness", "model", "process")
"""The kinds that look at several rows at once."""
_AT_ONCE = 1024


@dataclass(frozen=True)
class RowSettings:
    """How rows are graded.

    Attributes:
        kind: one of :data:`KINDS`.
        seconds: for one comparison, or for the tests of one program.
        rules: of ``rules``.
        judge: of ``judge`` and ``truthfulness``.
        cache: the folder of its answers.
        concurrency: programs at once.
        model: of ``model`` and ``process``, what grades.
    """

    kind: str
    seconds: float = 10.0
    rules: Sequence[Rule] = ()
    judge: Judge | None = None
    cache: Path = Path("reward-answers")
    concurrency: int = os.cpu_count() or 1
    model: "RewardModel | LearnedGrader | None" = None


def read_reward_rows(path: Path) -> Iterator[Row | str]:
    """The rows of a jsonl file; in place of one that is broken, what is wrong with it, by the number of its line.

    Raises:
        UserError: the file cannot be read.
    """
    for number, line in _lines(path):
        yield _row(number, line)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, by their numbers."""
    try:
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


def read_rewarded_rows(path: Path, rewards: Path, by: str | None = None) -> Iterator[tuple[Row, float | None]]:
    """The rows of a jsonl file with what :func:`grade_rows` said of each, one line a row; broken rows are left out.

    Args:
        path: of the rows.
        rewards: of what was said.
        by: the name of the component that is read; None: the reward is.

    Raises:
        UserError: a file cannot be read, the files have different numbers of rows, or a line holds no reward, or no
            such component beside one.
    """
    rows, graded = list(read_reward_rows(path)), list(_lines(rewards))
    if len(rows) != len(graded):
        raise UserError(
            f"{path} has {len(rows):,} rows and {rewards} {len(graded):,}; rewards are those of the same rows, a line "
            "each, as leyden reward writes them."
        )
    for row, (number, line) in zip(rows, graded, strict=True):
        if isinstance(row, dict):
            yield row, _reward(line, by, f"{rewards}, line {number}")


def _reward(line: bytes, by: str | None, place: str) -> float | None:
    try:
        said = json.loads(line)
        reward = said["reward"] if by is None or said["reward"] is None else said["components"][by]
        return Reward(None if reward is None else float(reward)).reward
    except (ValueError, LookupError, TypeError, RecursionError, UserError):
        what = "reward" if by is None else f"component '{by}'"
        raise UserError(f"{place} holds no {what}: {line[:200]!r}.") from None


def _row(number: int, line: bytes) -> Row | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"line {number} is no JSON: {error}"
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        return f"line {number} is no object with a text 'response'"
    return {**row, "line": number}


def grade_rows(path: Path, settings: RowSettings) -> Iterator[Reward]:
    """A record for each row that is not empty, in order; that of a broken row has no reward, and names its line.

    Raises:
        UserError: the file cannot be read, or it is code, and there is no sandbox.
    """
    yield from grade_all(list(read_reward_rows(path)), settings)


def grade_all(rows: list[Row | str], settings: RowSettings) -> Iterator[Reward]:
    """A record for each row, in order.

    Args:
        rows: each with a ``response`` and its ``line``; in place of one that is broken, what is wrong with it.
        settings: how.

    Raises:
        UserError: it is code, and there is no sandbox; or the judge cannot be reached.
    """
    if settings.kind == "code":
        try_to_escape()
    if settings.kind in TOGETHER:
        yield from _together(rows, settings)
        return
    mathematics = MathReward(settings.seconds)
    grade = grader(settings, mathematics)
    workers = settings.concurrency if settings.kind == "code" else 1
    with progress(f"rewards ({settings.kind})", len(rows), "rows") as bar, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(rows), _AT_ONCE):
            for reward in pool.map(lambda row: _graded(row, grade), rows[start : start + _AT_ONCE]):
                bar.advance(1)
                yield reward
    mathematics.close()


def grader(settings: RowSettings, mathematics: MathReward) -> Callable[[Row], Reward]:
    """What grades one row with a ``response``; of the kinds that look at a row by itself.

    Args:
        settings: its ``kind`` is none of those that look at several rows at once.
        mathematics: compares answers; its process is the caller's to end.
    """
    graders: dict[str, Callable[[Row], Reward]] = {
        "math": lambda row: mathematics.grade(row["response"], _reference(row)),
        "exact": lambda row: _grade_exact(row["response"], _reference(row)),
        "code": lambda row: _grade_code(row, settings),
        "ifeval": lambda row: grade_instructions(row["response"], _instructions(row)),
        "rules": lambda row: grade_rules(row["response"], settings.rules),
    }
    if settings.model is not None:
        graders[settings.kind] = settings.model.grade
    return graders[settings.kind]


def _graded(row: Row | str, grade: Callable[[Row], Reward]) -> Reward:
    if isinstance(row, str):
        return _broken(row)
    try:
        return grade(row)
    except SandboxUnavailableError:
        raise
    except UserError as error:
        return _broken(f"line {row['line']}: {error}")


def _broken(what: str) -> Reward:
    say(what)
    return Reward(None, {}, what)


def _together(rows: list[Row | str], settings: RowSettings) -> list[Reward]:
    """The rewards of kinds that look at several rows at once."""
    sound = {place: row for place, row in enumerate(rows) if isinstance(row, dict)}
    graded: dict[int, Reward] = {}
    if settings.kind == "judge":
        assert settings.judge is not None
        pairs = [(_text_of(row.get("prompt", "")), row["response"]) for row in sound.values()]
        graded = dict(zip(sound, grade_by_judge(pairs, settings.judge, settings.cache), strict=True))
    elif settings.kind in ("model", "process"):
        assert settings.model is not None
        with progress(f"rewards ({settings.kind})", len(sound), "rows") as bar:
            for (place, row), found in zip(sound.items(), settings.model.grade_all(list(sound.values())), strict=True):
                graded[place] = found if isinstance(found, Reward) else _broken(f"line {row['line']}: {found}")
                bar.advance(1)
    else:
        graded = _by_prompt(sound, settings)
    return [graded[place] if isinstance(row, dict) else _broken(row) for place, row in enumerate(rows)]


def _by_prompt(sound: dict[int, Row], settings: RowSettings) -> dict[int, Reward]:
    """The rewards of kinds that compare the responses to one prompt."""
    groups: dict[str, list[int]] = {}
    for place, row in sound.items():
        groups.setdefault(_text_of(row.get("prompt", "")), []).append(place)
    responses = [[sound[place]["response"] for place in places] for places in groups.values()]
    if settings.kind == "truthfulness":
        assert settings.judge is not None
        by_group = truthfulness(list(zip(groups, responses, strict=True)), settings.judge, settings.cache)
    else:
        by_group = _agreements(responses, settings)
    return {
        place: one
        for places, found in zip(groups.values(), by_group, strict=True)
        for place, one in zip(places, found, strict=True)
    }


def _agreements(groups: list[list[str]], settings: RowSettings) -> list[list[Reward]]:
    mathematics = MathReward(settings.seconds)
    found = []
    with progress("rewards (agreement)", len(groups), "prompts") as bar:
        for responses in groups:
            found.append(agreement(responses, mathematics))
            bar.advance(1)
    mathematics.close()
    return found


def _text_of(prompt: Any) -> str:
    """A prompt as a text; the turns of a chat as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def _field(row: Row, name: str, kind: Any) -> Any:
    if row.get(name) is None:
        given = [key for key in row if key != "line" and row[key] is not None]
        raise UserError(f"it needs a field '{name}', and has: {', '.join(given)}.")
    if not isinstance(row[name], kind):
        raise UserError(f"'{name}' is of another type than it should be: {json.dumps(row[name])[:100]}.")
    return row[name]


def _reference(row: Row) -> str:
    """The right answer as a text; published sets have numbers, too."""
    value = row.get("reference")
    return (
        str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _field(row, "reference", str)
    )


def _grade_exact(response: str, reference: str) -> Reward:
    """1 where the response is the reference, white space at both ends aside."""
    right = float(response.strip() == reference.strip())
    return Reward(
        right, {"correct": right}, "the reference" if right else f"the reference is {reference.strip()[:100]}"
    )


def _grade_code(row: Row, settings: RowSettings) -> Reward:
    tests = _field(row, "tests", str | list)
    return grade_code(
        row["response"],
        tests,
        prompt=_text_of(row.get("prompt", "")),
        entry_point=row.get("entry_point"),
        setup=row.get("setup"),
        limits=limits_of(settings.seconds),
    )


def _instructions(row: Row) -> Any:
    if "instruction_id_list" in row:
        return published_instructions(row["instruction_id_list"], _field(row, "kwargs", list))
    return _field(row, "instructions", list)
