"""RULER's two tasks of questions about documents: one document holds the answer (qa_1), or two or more together (qa_2).

The authors take them from SQuAD and HotpotQA, whose files are read where they are given. Without one, documents and
questions are of a made-up world (:mod:`leyden.evaluate.tasks.ruler.facts`).
"""

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leyden.core.errors import UserError
from leyden.evaluate.published import PublishedRow, parse_rows, read_json
from leyden.evaluate.tasks.ruler.draft import Draft, Materials, Sample
from leyden.evaluate.tasks.ruler.facts import NUM_TOWNS, Town, other_documents

_HEAD = "Answer the question by what the documents say. Write the answer alone, and nothing else."
_BETWEEN = "{}\n\n"


@dataclass(frozen=True)
class Case:
    """A question.

    Attributes:
        question: its words.
        answers: any of them is right.
        gold: which documents hold it, by their places.
        near: documents that come before any others; they are about the same.
    """

    question: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class QaFile:
    """A published file.

    Attributes:
        kind: which subtask it is for.
        documents: all, each once.
        cases: all questions that have an answer, in an order by the seed.
        digest: of the file.
    """

    kind: Literal["qa_1", "qa_2"]
    documents: list[str]
    cases: list[Case]
    digest: str


def read_qa(path: Path, seed: int) -> QaFile:
    """A file of SQuAD (an object with ``data``) or of HotpotQA (a list).

    Raises:
        UserError: it is neither, or has broken rows.
    """
    content = read_json(path)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    places: dict[str, int] = {}
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        rows = [_row(f"{path}, data[{at}]", row) for at, row in enumerate(content["data"])]
        cases = [case for found in parse_rows(rows, partial(_squad, places)) for case in found]
        kind = "qa_1"
    elif isinstance(content, list):
        rows = [_row(f"{path}, row {number}", row) for number, row in enumerate(content, 1)]
        cases, kind = parse_rows(rows, partial(_hotpot, places)), "qa_2"
    else:
        raise UserError(f"--file: {path} is neither SQuAD (an object with 'data') nor HotpotQA (a list).")
    if not cases:
        raise UserError(f"--file: {path} has no question with an answer.")
    random.Random(f"ruler {seed} cases").shuffle(cases)
    return QaFile(kind, list(places), cases, digest)


def draft_from_file(materials: Materials, sample: Sample, *, file: QaFile) -> Draft:
    """The question of this number, its documents and as many others as fit."""
    case, seed = file.cases[sample.number % len(file.cases)], sample.draws.getrandbits(64)

    def others(room: int) -> list[np.ndarray]:
        """Those about the same first, then any; from the beginning where there are no more."""
        mixing = random.Random(seed)
        near = list(case.near)
        rest = sorted(set(range(len(file.documents))) - {*case.gold, *near})
        mixing.shuffle(near)
        mixing.shuffle(rest)
        if not near and not rest:
            return []
        found: list[np.ndarray] = []
        for at in itertools.chain(near, itertools.cycle(rest or near)):
            if room < 0:
                break
            found.append(_piece(materials, file, at))
            room -= len(found[-1])
        return found

    gold = [_piece(materials, file, at) for at in case.gold]
    return _draft(materials, sample.draws, case.question, case.answers, gold, others, shared=False)


def draft_generated(materials: Materials, sample: Sample, *, hops: int) -> Draft:
    """A question about a made-up town: of its own document, or of its founder's with two hops."""
    town = Town(2 * sample.draws.randrange(NUM_TOWNS // 2))
    if hops == 2:
        question, answer = f"In which village was the founder of {town.name} born?", town.birthplace
        texts = [town.document(), town.founders_document()]
    else:
        question, answer = sample.draws.choice(
            [
                (f"Who founded the town of {town.name}?", town.founder),
                (f"In which year was the town of {town.name} founded?", str(town.year)),
            ]
        )
        texts = [town.document()]

    def others(room: int) -> list[np.ndarray]:
        stream = materials.stream("documents", lambda draws: (_BETWEEN.format(text) for text in other_documents(draws)))
        return stream.tokens[: stream.fitting(room).stop]

    gold = materials.encode(*(_BETWEEN.format(text) for text in texts))
    return _draft(materials, sample.draws, question, (answer,), gold, others, shared=True)


def _draft(
    materials: Materials,
    draws: random.Random,
    question: str,
    answers: tuple[str, ...],
    gold: list[np.ndarray],
    others: Callable[[int], list[np.ndarray]],
    *,
    shared: bool,
) -> Draft:
    """A prompt with ``gold`` anywhere among ``others``, numbered; ``shared`` where the others are always the same."""
    places, mixing = [draws.random() for _ in gold], draws.getrandbits(64)
    golden = sum(map(len, gold))

    def fill(room: int) -> tuple[np.ndarray, tuple[str, ...]]:
        around = others(room - golden)
        headers = _headers(materials, len(around) + len(gold))
        # Tokens of 0, 1, 2, ... other documents, and of the headers of these and the golden ones.
        own = np.cumsum([0, *map(len, around)])
        numbered = np.cumsum(list(map(len, headers)))[len(gold) - 1 :][: len(own)]
        around = around[: max(0, int(np.searchsorted(own + numbered, room - golden, side="right")) - 1)]
        if not shared:
            random.Random(mixing).shuffle(around)
        documents = list(around)
        for piece, place in sorted(zip(gold, places, strict=True), key=lambda each: -each[1]):
            documents.insert(round(place * len(around)), piece)
        parts = [part for header, document in zip(headers, documents, strict=False) for part in (header, document)]
        return np.concatenate(parts), answers

    return Draft(
        head=f"{_HEAD}\n\nThe documents are these.\n\n",
        tail=f"{_HEAD}\n\nQuestion: {question}",
        begun=" Answer:",
        least_tokens=golden + sum(map(len, _headers(materials, len(gold))[: len(gold)])),
        fill=fill,
        depth=100 * min(places) if shared else 0.0,
    )


def _headers(materials: Materials, count: int) -> list[np.ndarray]:
    """What stands before each document: at least so many."""
    size = 1 << max(6, (count - 1).bit_length())
    return materials.keep(f"headers {size}", lambda: [f"Document {number}:\n" for number in range(1, size + 1)])


def _piece(materials: Materials, file: QaFile, place: int) -> np.ndarray:
    return materials.keep(f"{file.kind} {place}", lambda: [_BETWEEN.format(file.documents[place])])[0]


def _row(where: str, row: Any) -> PublishedRow:
    if not isinstance(row, dict):
        raise UserError(f"--file: {where} is no JSON object; correct or remove it.")
    return PublishedRow(where, row)


def _squad(places: dict[str, int], row: PublishedRow) -> list[Case]:
    """The questions of an article; its other paragraphs are near."""
    paragraphs = row.fields.get("paragraphs")
    if not isinstance(paragraphs, list):
        raise row.broken("paragraphs", "a list")
    try:
        texts = [str(paragraph["context"]) for paragraph in paragraphs]
        own = [places.setdefault(text, len(places)) for text in texts]
        return [
            Case(
                str(question["question"]),
                tuple(dict.fromkeys(str(answer["text"]) for answer in question["answers"])),
                (at,),
                tuple(other for other in dict.fromkeys(own) if other != at),
            )
            for at, paragraph in zip(own, paragraphs, strict=True)
            for question in paragraph["qas"]
            if not question.get("is_impossible") and question["answers"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise row.broken("paragraphs", f"as SQuAD has it (context, qas, question, answers, text): {error}") from None


def _hotpot(places: dict[str, int], row: PublishedRow) -> Case:
    """A question with its ten paragraphs."""
    question, answer, context = row.text("question"), row.text("answer"), row.fields.get("context")
    try:
        texts = [f"{title}\n{''.join(sentences)}" for title, sentences in context]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    except (TypeError, ValueError):
        texts = []
    if not texts:
        raise row.broken("context", "a list of pairs of a title and its sentences")
    return Case(question, (answer,), tuple(dict.fromkeys(places.setdefault(text, len(places)) for text in texts)))
