"""Rows of published benchmarks for the task files that Leyden ships: from a local copy, or from the hub.

A benchmark's rows have other fields in each place where they are published. What a task file reads is made of any of
them here, so that it does not matter where a copy is from. The forms known are those of the hub, of the benchmark's own
publication, and of the copies in mosaicml/llm-foundry (``query``, ``choices``, ``gold``).
"""

import gzip
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.samplers import ContextSampler

from leyden.core.errors import UserError
from leyden.evaluate.task import Row


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's rows are, and what a task file reads of them.

    Attributes:
        row: makes the task file's fields of a row of any known form.
        hub: the data set's name on the hub.
        part: the name of its part there.
        test: the split there that is measured.
        train: the split there that examples are of; None where there is none.
        by_subject: whether examples are of the subject of the question.
    """

    row: Callable[[Row], Row]
    hub: str
    part: str | None = None
    test: str = "test"
    train: str | None = "train"
    by_subject: bool = False


_MOST_EXAMPLES = 8


def rows_of(*, benchmark: str, file: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The splits ``test`` and ``train`` of a benchmark, as a task file's ``custom_dataset``.

    Args:
        benchmark: a name in :data:`BENCHMARKS`.
        file: a local copy of the rows that are measured, .jsonl or .json, also .gz. Examples are of the file beside it
            whose name has ``train`` in place of ``test``; where there is none, of the same rows without the one asked.

    Raises:
        UserError: a row that has not the form of this benchmark, a file without rows, or no file and no hub.
    """
    of = BENCHMARKS[benchmark]
    if file is not None:
        path = Path(file)
        beside = path.with_name(path.name.replace("test", "train"))
        found = {"test": _local(benchmark, of, path)}
        if beside != path and beside.is_file():
            found["train"] = _local(benchmark, of, beside)
    else:
        names = {"test": of.test} | ({} if of.train is None else {"train": of.train})
        found = {split: _from_hub(benchmark, of, name) for split, name in names.items()}
    found.setdefault("train", found["test"])
    if of.by_subject:
        found = _with_examples(found)
    return {split: datasets.Dataset.from_list(rows) for split, rows in found.items()}


class SameSubject(ContextSampler):
    """Examples of a question's own subject, the first ones, as MMLU is measured; they come with each row."""

    def sample(self, n: int, eval_doc: Row | None = None, df: Any = None, **kwargs: Any) -> list[Row]:
        """``n`` examples for a question.

        Raises:
            UserError: its subject has fewer.
        """
        if not n or eval_doc is None:
            return []
        found = [row for row in json.loads(eval_doc["examples"]) if row["question"] != eval_doc["question"]]
        if len(found) < n:
            raise UserError(
                f"{n} examples of the subject '{eval_doc['subject']}' were asked for, and there are {len(found)}."
            )
        return found[:n]


def _with_examples(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows that are measured, each with the first ones of its subject as JSON."""
    of_subject: dict[str, list[Row]] = {}
    for row in found["train"]:
        own = of_subject.setdefault(row["subject"], [])
        if len(own) <= _MOST_EXAMPLES:  # one more, as a row is no example of itself
            own.append(row)
    texts = {subject: json.dumps(rows) for subject, rows in of_subject.items()}
    return {"test": [{**row, "examples": texts.get(row["subject"], "[]")} for row in found["test"]]}


def _local(benchmark: str, of: Benchmark, path: Path) -> list[Row]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    try:
        whole = json.loads(text)
        rows = whole if isinstance(whole, list) else [whole]
    except ValueError:
        rows = [_parsed(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return _made(benchmark, of, str(path), rows)


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise UserError(f"{path}, row {number}: it is no JSON; every line has to be one object.") from None


def _from_hub(benchmark: str, of: Benchmark, split: str) -> list[Row]:
    try:
        data = datasets.load_dataset(of.hub, of.part, split=split)
    except Exception as error:  # of the network, the hub or its cache
        raise UserError(
            f"{benchmark}: its data ({of.hub}) are not on this machine, and the hub does not give them "
            f"({type(error).__name__}). Give a local copy with --file."
        ) from None
    return _made(benchmark, of, of.hub, [dict(row) for row in data])  # pyright: ignore[reportArgumentType, reportCallIssue]


def _made(benchmark: str, of: Benchmark, where: str, rows: Sequence[Any]) -> list[Row]:
    made = []
    for number, row in enumerate(rows, 1):
        try:
            made.append(of.row(row))
        except KeyError as error:
            known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{where}, row {number}: it is no row of {benchmark}, for want of the field {error} (it has: {known})."
            ) from None
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UserError(f"{where}, row {number}: it is no row of {benchmark} ({error}).") from None
    if not made:
        raise UserError(f"{where} has no rows of {benchmark}.")
    return made


def _choices(question: str, choices: Sequence[str], gold: int, **facts: Any) -> Row:
    if not (isinstance(question, str) and choices and all(isinstance(choice, str) and choice for choice in choices)):
        raise ValueError("its question and its choices have to be texts")
    if not 0 <= gold < len(choices):
        raise ValueError(f"its right choice is number {gold}, and it has {len(choices)}")
    return {"question": question, "choices": list(choices), "gold": int(gold), **facts}


def _arc(row: Row) -> Row:
    if "query" in row:
        return _choices(row["query"].removeprefix("Question: ").strip(), row["choices"], row["gold"])
    stem, options = row["question"], row
    if isinstance(stem, dict):
        stem, options = stem["stem"], stem
    options = options["choices"]
    if isinstance(options, list):
        options = {key: [option[key] for option in options] for key in ("text", "label")}
    return _choices(stem, options["text"], options["label"].index(row["answerKey"]))


def _piqa(row: Row) -> Row:
    if "query" in row:
        return _choices(row["query"].removeprefix("Question: ").strip(), row["choices"], row["gold"])
    return _choices(row["goal"], [row["sol1"], row["sol2"]], row["label"])


def _boolq(row: Row) -> Row:
    if "query" in row:
        match = re.fullmatch(r"Passage: (.*)\nQuestion: (.*?)\??\s*(?:Answer:)?\s*", row["query"], re.DOTALL)
        if match is None:
            raise ValueError("its query is not 'Passage: ...' and 'Question: ...'")
        answer = row["choices"][row["gold"]].strip().lower() == "yes"
        passage, question = match[1], match[2]
    else:
        passage, question = row["passage"], row["question"].removesuffix("?")
        answer = bool(row["answer"] if "answer" in row else row["label"])
    return _choices(question, ["no", "yes"], int(answer), passage=passage)


def _winogrande(row: Row) -> Row:
    """The two beginnings of a sentence, and the end that both have."""
    if "context_options" in row:
        contexts, ending, gold = row["context_options"], row["continuation"], row["gold"]
    else:
        before, blank, after = row["sentence"].partition("_")
        if not blank:
            raise ValueError("its sentence has no blank (_)")
        contexts = [before + row["option1"], before + row["option2"]]
        ending, gold = after.strip(), int(row["answer"]) - 1
    return {**_choices("", contexts, gold), "ending": ending}


def _lambada(row: Row) -> Row:
    if "continuation" in row:
        return {"context": row["context"].rstrip(), "word": row["continuation"].strip()}
    context, _, word = row["text"].rstrip().rpartition(" ")
    return {"context": context, "word": word}


def _mmlu(row: Row) -> Row:
    gold = row["answer"]
    gold = "ABCD".index(gold) if isinstance(gold, str) and not gold.isdecimal() else int(gold)
    return _choices(row["question"].strip(), row["choices"], gold, subject=str(row.get("subject", "")))


def _gsm8k(row: Row) -> Row:
    answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
    if "####" not in row["answer"]:
        raise ValueError("its answer does not end with '#### ' and a number")
    return {"question": row["question"], "solution": row["answer"], "answer": answer}


def _math(row: Row) -> Row:
    level = str(row.get("level", "")).removeprefix("Level ")
    subject = str(row.get("type", row.get("subject", "")))
    return {"problem": row["problem"], "solution": row["solution"], "level": level, "subject": subject}


def _humaneval(row: Row) -> Row:
    return {key: row[key] for key in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}


def _ifeval(row: Row) -> Row:
    """What is asked for stays JSON, as rows have other fields there."""
    instructions = [
        {"id": id, **{key: value for key, value in (kwargs or {}).items() if value is not None}}
        for id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    return {"key": int(row["key"]), "prompt": row["prompt"], "instructions": json.dumps(instructions)}


BENCHMARKS: dict[str, Benchmark] = {
    "arc_challenge": Benchmark(_arc, "allenai/ai2_arc", "ARC-Challenge"),
    "arc_easy": Benchmark(_arc, "allenai/ai2_arc", "ARC-Easy"),
    "boolq": Benchmark(_boolq, "google/boolq", test="validation"),
    "gsm8k": Benchmark(_gsm8k, "openai/gsm8k", "main"),
    "humaneval": Benchmark(_humaneval, "openai/openai_humaneval", train=None),
    "ifeval": Benchmark(_ifeval, "google/IFEval", test="train", train=None),
    "lambada": Benchmark(_lambada, "EleutherAI/lambada_openai", train=None),
    "math": Benchmark(_math, "HuggingFaceH4/MATH-500", train=None),
    "mmlu": Benchmark(_mmlu, "cais/mmlu", "all", train="dev", by_subject=True),
    "piqa": Benchmark(_piqa, "ybisk/piqa", test="validation"),
    "winogrande": Benchmark(_winogrande, "allenai/winogrande", "winogrande_xl", test="validation"),
}
"""Every benchmark that Leyden ships a task file of, by the task's name."""
