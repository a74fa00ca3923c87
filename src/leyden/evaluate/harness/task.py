"""``lm-eval:TASK``: the harness makes the requests and the figures, Leyden asks them and keeps the answers.

Every request is an item, named by what it asks, so that an evaluation that was stopped goes on and equal requests are
asked once. When all are answered the harness is run over the kept answers, with all it knows of filters, metrics and
groups.
"""

import functools
import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from lm_eval import evaluator
from lm_eval.api.task import Task as LmEvalTask
from lm_eval.tasks import TaskManager

from leyden.core.errors import UserError, suggest
from leyden.core.sandbox.probe import try_to_escape
from leyden.evaluate.harness.model import KeptLM, answer_row
from leyden.evaluate.harness.requests import AskedQuestion, Requests, request_id
from leyden.evaluate.scores import by_axes, mean_with_interval, normal_figures
from leyden.evaluate.task import Answer, Options, Question, Row, Subject, TaskItem

OWN_TASKS = Path(__file__).with_name("tasks")
"""The task files that Leyden ships."""
_SEED = 1234
"""Of the examples before a question: the harness's own."""
_TOGETHER = 512
"""Requests that are asked together, so that those with one context share its reading."""


class HarnessTask:
    """A task, or a group of tasks, of the harness.

    Args:
        name: ``lm-eval:TASK``.
        options: ``include_path``, ``file``, ``shots``, ``limit`` and ``chat`` are of interest.
        subject: the model.

    Raises:
        UserError: there is no such task, its data cannot be read, or it runs code that the model wrote by itself.
        SandboxUnavailableError: it is a task of Leyden's that runs such code, and there is no sandbox.
    """

    def __init__(self, name: str, options: Options, subject: Subject) -> None:
        self.name, self._options, self._subject = name, options, subject
        self._task = name.partition(":")[2]
        _be_quiet()
        if options.chat and not subject.chats:
            raise UserError(f"{name}: {subject.name} has no chat template; leave out --chat.")
        self._loaded = _load(self._task, options)
        if any(getattr(task, "UNSAFE_CODE", False) for task in self._loaded["tasks"].values()):
            raise _unsafe(self._task)
        if any((task.config.metadata or {}).get("sandbox") for task in self._loaded["tasks"].values()):
            try_to_escape()  # before the model is asked anything
        self._asked: dict[str, list[AskedQuestion]] = {}

    def settings(self) -> Row:
        """The harness, the form of the requests, and the data."""
        options = self._options
        data = None if options.file is None else options.file.name
        return {"lm_eval": version("lm_eval"), "shots": options.shots, "chat": options.chat, "data": data}

    def items(self) -> list[TaskItem]:
        """One item for each question of each request."""
        requests = Requests(self._subject)
        instances = self._instances()
        items: dict[str, TaskItem] = {}
        for number, (kind, arguments) in enumerate(instances):
            id = request_id(kind, arguments)
            if id in self._asked:
                continue
            self._asked[id] = requests.questions(kind, arguments)
            for part, asked in enumerate(self._asked[id]):
                facts = {"kind": kind} | ({"cut_tokens": asked.cut_tokens} if asked.cut_tokens else {})
                build = functools.partial(lambda question: question, asked.question)
                cost = len(asked.question.prompt)
                items[f"{id}-{part}"] = TaskItem(f"{id}-{part}", build, facts, f"{number // _TOGETHER}", cost)
        return list(items.values())

    def grade(self, item: TaskItem, question: Question, answer: Answer) -> Row:
        """What was answered; the harness grades it when all is there. ``score`` is the log-probability asked for."""
        return answer_row(question, answer)

    def summary(self, rows: Sequence[Row]) -> Row:
        """The harness's figures; those of the first metric as the value."""
        by_id = {row["id"]: row for row in rows}
        kept = {id: [by_id[f"{id}-{part}"] for part in range(len(asked))] for id, asked in self._asked.items()}
        self._set_shots()
        results = evaluator.evaluate(
            KeptLM(kept, self._subject),
            self._loaded,
            limit=self._options.limit,
            bootstrap_iters=0,
            apply_chat_template=self._options.chat,
            fewshot_as_multiturn=self._options.chat,
        )
        assert results is not None, "there is one process"
        cut = sum("cut_tokens" in row for row in rows)
        return _figures(self._task, self._loaded, results) | ({"cut_requests": cut} if cut else {})

    def _set_shots(self) -> None:
        """Examples before each question, drawn anew from the same seed."""
        for task in self._loaded["tasks"].values():
            if self._options.shots is not None or task.config.num_fewshot is None:
                task.set_config(key="num_fewshot", value=self._options.shots or 0)
            task.set_fewshot_seed(seed=_SEED)

    def _instances(self) -> list[tuple[str, tuple[Any, ...]]]:
        """The kind and the arguments of every request, in the harness's order."""
        self._set_shots()
        model = KeptLM({}, self._subject)
        found = []
        for task in self._loaded["tasks"].values():
            task.build_all_requests(
                limit=self._options.limit,
                apply_chat_template=self._options.chat,
                fewshot_as_multiturn=self._options.chat,
                chat_template=model.apply_chat_template if self._options.chat else None,
                tokenizer_name=model.tokenizer_name if self._options.chat else "",
            )
            found += [(instance.request_type, instance.args) for instance in task.instances]
        return found


def _be_quiet() -> None:
    """The harness's warnings are about its own options; errors are said."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()


def _load(name: str, options: Options) -> Any:
    """The harness's tasks and groups of this name: of the user's folders, of Leyden's own, or of the harness's.

    Raises:
        UserError: there is none, or it cannot be made.
    """
    missing = [path for path in options.include_path if not path.is_dir()]
    if missing:
        raise UserError(f"--include-path {missing[0]}: there is no such folder.")
    folders: list[str | Path] = [OWN_TASKS, *options.include_path]
    data: dict[str, Any] = {} if options.file is None else {"file": str(options.file)}
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=data)
    if name not in manager.all_tasks:
        own = manager.all_tasks
        manager = TaskManager(include_path=folders, metadata=data)
        if name not in manager.all_tasks:
            raise UserError(f"lm-eval knows no task '{name}'{suggest(name, own)}")
    if (manager.task_index[name].cfg or {}).get("unsafe_code"):
        raise _unsafe(name)
    try:
        return manager.load([name])
    except UserError:
        raise
    except Exception as error:  # of any library that a task file names: what it says is for the user
        raise UserError(
            f"lm-eval:{name} cannot be made ({type(error).__name__}: {' '.join(str(error).split())[:300]}). A task of "
            "Leyden's reads a local copy of its data with --file; others need theirs at hand, or the hub."
        ) from error


def _unsafe(name: str) -> UserError:
    return UserError(
        f"lm-eval:{name} runs code that the model wrote in this process; Leyden runs such code in its sandbox alone. "
        "Leyden's own task file humaneval does; measure that, or another task."
    )


def _figures(name: str, loaded: Any, results: Any) -> Row:
    """``value`` and the rest of a line, from what the harness found."""
    own = results["results"][name]
    keys = [key for key in own if "," in key and "_stderr," not in key and isinstance(own[key], int | float)]
    if not keys:
        raise UserError(f"lm-eval:{name} gives no figure.")
    main = _main(loaded, keys)
    samples = {task: _main_samples(found, main) for task, found in results["samples"].items()}
    documents = [_document(task, one, main) for task, found in samples.items() for one in found]
    scores = [document["score"] for document in documents if document["score"] is not None]
    figures = mean_with_interval(scores) if scores else None
    if figures is None or abs(figures["value"] - own[main]) > 1e-6:  # the metric is no mean of documents
        figures = normal_figures(own[main], own.get(main.replace(",", "_stderr,")), len(documents))
    line: Row = {**figures, "metric": main, "metrics": {key: round(float(own[key]), 6) for key in keys}}
    cells = _cells(name, loaded, documents)
    return {**line, **({"cells": cells} if cells else {}), "of_documents": documents}


def _main(loaded: Any, keys: Sequence[str]) -> str:
    """The metric that a task file names first, by its first filter."""
    metrics = [one["metric"] for one in next(iter(loaded["tasks"].values())).config.metric_list or []]
    return next((key for key in keys if metrics and key.partition(",")[0] == metrics[0]), keys[0])


def _main_samples(samples: Iterable[Row], main: str) -> list[Row]:
    """Those of the main metric's filter, each document once."""
    return [sample for sample in samples if sample["filter"] == main.partition(",")[2]]


def _document(task: str, sample: Row, main: str) -> Row:
    """What is kept of a document: what was asked, what came, and its score."""
    score = sample.get(main.partition(",")[0])
    return {
        "task": task,
        "id": sample["doc_id"],
        "doc": {key: value for key, value in sample["doc"].items() if key != "examples"},
        "answer": sample["filtered_resps"],
        "target": sample["target"],
        "score": float(score) if isinstance(score, int | float) else None,
    }


def _cells(name: str, loaded: Any, documents: Sequence[Row]) -> list[Row]:
    """Figures by task, where there are several, or by the facts that the task's ``metadata: cells`` names."""
    if not all(document["score"] is not None for document in documents):
        return []
    if len(loaded["tasks"]) > 1:
        return by_axes(documents, ("task",))
    task: LmEvalTask = loaded["tasks"][name]
    axes = (task.config.metadata or {}).get("cells", [])
    rows = [{**{axis: document["doc"][axis] for axis in axes}, "score": document["score"]} for document in documents]
    return by_axes(rows, axes) if axes else []
