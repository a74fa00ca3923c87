"""``leyden eval``: asks a source the items of each task, keeps the rows, and gives one line of figures a task."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from leyden.core.errors import UserError
from leyden.core.files import atomic_file
from leyden.core.lock import folder_lock
from leyden.core.log import Bar, progress
from leyden.evaluate.rows import RowFile, digest
from leyden.evaluate.scores_page import RESULTS, read_results, write_scores_page
from leyden.evaluate.sources import Source
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, Task, TaskItem
from leyden.evaluate.tasks import check_names, make_task

_AT_ONCE = 64
"""Items without a group that are asked together, at most."""
_TOKENS_AT_ONCE = 2**22
"""Tokens of such items together, about, so that the prompts of a few long ones are kept in memory and no more."""


def evaluate(
    source: Source, subject: Subject, names: Sequence[str], options: Options, out: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Measure a model on tasks.

    Args:
        source: answers the questions.
        subject: what the tasks have to know of the model.
        names: of the tasks.
        options: the user's.
        out: a folder for rows, figures and the page; what it has of the same settings is not asked again.

    Returns:
        One line a task, as soon as the task is done.

    Raises:
        UserError: before anything is asked, where a task or an option is wrong; later, where the source fails. The rows
            so far are kept.
    """
    check_names(tuple(names))
    tasks = [make_task(name, options, subject) for name in names]
    items = [task.items() for task in tasks]
    for task, own in zip(tasks, items, strict=True):
        if not own:
            raise UserError(f"{task.name}: the options leave no items; raise --limit, --samples or --depths.")
    with nullcontext() if out is None else folder_lock(out, "evaluates a model"):
        for task, own in zip(tasks, items, strict=True):
            line = _run(source, subject, task, own, out)
            if out is not None:
                _keep(out, line)
            yield line


def _run(source: Source, subject: Subject, task: Task, items: Sequence[TaskItem], out: Path | None) -> dict[str, Any]:
    """One task's line."""
    started, before = time.perf_counter(), source.reading
    settings = task.settings()
    key = digest({"task": task.name, "model": source.identity, **settings})
    with RowFile(None if out is None else out / f"{file_stem(task.name)}.jsonl", key) as file:
        missing = [item for item in items if item.id not in file.rows]
        if missing:
            with progress(task.name, sum(item.cost for item in items), "tokens") as bar:
                bar.advance(sum(item.cost for item in items) - sum(item.cost for item in missing))
                for batch in _batches(missing):
                    _ask(source, task, batch, file, bar)
        rows = [file.rows[item.id] for item in items]
    figures = task.summary(rows)
    documents = figures.pop("of_documents", None)
    if out is not None and documents is not None:
        _keep_documents(out, task.name, documents)
    line = {"task": task.name, **figures, "settings": settings, "model": subject.name}
    if missing:
        line["reading"] = source.reading.since(before)
    return {**line, "seconds": round(time.perf_counter() - started, 3)}


def _batches(items: Sequence[TaskItem]) -> Iterator[list[TaskItem]]:
    """Items of a group together; the others some at a time."""
    for group, members in itertools.groupby(items, lambda item: item.group):
        batch: list[TaskItem] = []
        for item in members:
            full = len(batch) == _AT_ONCE or sum(other.cost for other in batch) + item.cost > _TOKENS_AT_ONCE
            if batch and full and not group:
                yield batch
                batch = []
            batch.append(item)
        yield batch


def _ask(source: Source, task: Task, batch: Sequence[TaskItem], file: RowFile, bar: Bar) -> None:
    """Ask a batch, and keep a row of each answer as it comes."""
    questions = [item.build() for item in batch]
    second: list[tuple[TaskItem, Answer, Question]] = []
    for index, answer in source.answers(questions):
        item = batch[index]
        if item.then is not None:
            second.append((item, answer, item.then(answer)))
        else:
            file.add(_row(task, item, questions[index], answer))
            bar.advance(item.cost)
    for index, answer in source.answers([question for _, _, question in second]) if second else ():
        item, first, question = second[index]
        file.add(_row(task, item, question, answer, first))
        bar.advance(item.cost)


def _row(task: Task, item: TaskItem, question: Question, answer: Answer, first: Answer | None = None) -> Row:
    read = answer.prompt_tokens if first is None else first.prompt_tokens + answer.prompt_tokens
    row: Row = {"id": item.id, **item.facts, "prompt_tokens": read}
    if first is not None:
        row["first_answer"] = first.text
    if question.max_tokens:
        row |= {"answer": answer.text, "expected": list(question.expected)}
    return row | task.grade(item, question, answer)


def file_stem(task: str) -> str:
    """What the files of a task begin with."""
    return task.replace(":", "-").replace("/", "-")


def _keep_documents(out: Path, task: str, documents: Sequence[Row]) -> None:
    """Write what a task found of each of its documents, beside the rows of its questions."""
    with atomic_file(out / f"{file_stem(task)}.documents.jsonl") as part:
        lines = (json.dumps(document, ensure_ascii=False, default=str) + "\n" for document in documents)
        part.write_text("".join(lines), encoding="utf-8")


def _keep(out: Path, line: dict[str, Any]) -> None:
    """Put a line among those that the folder has, in place of an earlier one of the same task, and draw the page."""
    lines = [earlier for earlier in read_results(out) if earlier["task"] != line["task"]] + [line]
    with atomic_file(out / RESULTS) as part:
        part.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    write_scores_page([out], out / "index.html")
