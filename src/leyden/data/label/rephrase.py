"""The stage ``rephrase``: a model writes documents anew, after Nemotron-CC (arXiv 2412.02595, section 3)."""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from leyden.core.errors import suggest
from leyden.core.files import atomic_file
from leyden.core.log import progress
from leyden.data.documents import Document, Documents, Message
from leyden.data.label.answers import Answers, ask
from leyden.data.label.language_model import ModelRequest, ModelSettings, Reply
from leyden.data.label.open_model import open_model
from leyden.data.label.rephrase_styles import STYLES, SYSTEM, Style
from leyden.data.parquet import read_batches
from leyden.data.stage import Corpus, Stage

_REFUSAL = re.compile(
    r"(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(['’]t|not)|i['’]m (unable|not able)|i am (unable|not able)"
    r"|as an ai\b|as a (large )?language model)",
    re.IGNORECASE,
)
"""How answers begin that refuse the task."""
_THOUGHTS = re.compile(r"^.*</think>", re.DOTALL)
_COPY_WORDS = 8
"""Runs of so many words are compared to tell a copy from a rephrasing."""


@dataclass(frozen=True)
class Result:
    """A document to be, made of another.

    Attributes:
        row: of the original in its batch.
        document: with the original's id and ``#style``.
        reason, detail: why it is of no use, if it is not.
    """

    row: int
    document: Document
    reason: str | None
    detail: str | None


class Rephrase(Stage):
    """Add, for each chosen document, one for each style; or put them in its place.

    A new document is called ``ID#STYLE`` and says in its metadata what it was made of (``rephrased_from``), how
    (``rephrased_style``) and by which model. It has no scores. What is made of an answer that is empty, cut off, a
    refusal, too short or a copy is dropped, with its reason. Answers are kept (``answers``): a build that is killed, or
    run again with another choice of documents, asks nothing twice. Dialogues are left alone.
    """

    WHOLE_CORPUS: ClassVar[bool] = True

    kind: Literal["rephrase"] = "rephrase"
    model: ModelSettings
    """Who rephrases."""
    styles: tuple[str, ...] = ("wikipedia",)
    """``wikipedia`` (Nemotron-CC's for low-quality text); ``questions``, ``distil``, ``knowledge``, ``list`` (for
    high-quality text)."""
    mode: Literal["add", "replace"] = "add"
    """Whether an original stays beside what was made of it, or leaves if something was."""
    score: str = ""
    """Choose by this score; empty: all documents."""
    min_score: float | None = None
    """Only documents that score at least this."""
    max_score: float | None = None
    """Only documents that score at most this."""
    min_characters: int = Field(default=200, ge=1)
    """Shorter documents are left alone."""
    max_characters: int = Field(default=12_000, ge=1)
    """So are longer ones, which a model would not treat as a whole."""
    max_tokens: int = Field(default=4096, ge=1)
    """An answer ends after so many."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the model's draws."""
    seed: int = 0
    """Of the model's draws."""
    min_result_characters: int = Field(default=50, ge=1)
    """Shorter answers are of no use."""
    max_copied: float = Field(default=0.6, gt=0, le=1)
    """Share of an answer's runs of eight words that may be the original's."""
    answers: Path | None = None
    """A folder for answers that other builds may share. None: beside the stage's work, where they outlive a change of
    its settings."""

    @field_validator("styles")
    @classmethod
    def _known(cls, styles: tuple[str, ...]) -> tuple[str, ...]:
        for style in styles:
            if style not in STYLES:
                raise ValueError(f"no style '{style}'{suggest(style, STYLES)}")
        if not styles or len(set(styles)) < len(styles):
            raise ValueError("name at least one style, and each once")
        return styles

    @model_validator(mode="after")
    def _score_has_a_name(self) -> Self:
        if not self.score and (self.min_score is not None or self.max_score is not None):
            raise ValueError("min_score and max_score need score, the name of the score")
        return self

    def files(self) -> tuple[Path, ...]:
        """A local model."""
        return self.model.files()

    def prepare(self, corpus: Corpus) -> None:
        """Ask for every document that is chosen."""
        model = open_model(self.model, corpus.open_model)
        folder = self._folder(corpus.work)
        with atomic_file(corpus.work / "model.json") as part:
            part.write_text(json.dumps({"identity": model.identity}))
        sizes = {name: path.stat().st_size for name, path in corpus.shards.items()}
        with Answers(folder) as answers, progress("rephrasing", sum(sizes.values()), "bytes") as bar:
            for name, path in sorted(corpus.shards.items()):
                for batch in read_batches(path):
                    ask(model, [request for _, _, request in self._requests(batch)], answers)
                bar.advance(sizes[name])

    def apply(self, documents: Documents, shard: str, work: Path) -> Documents:
        """The given documents, and behind them those that were made of them."""
        facts = json.loads((work / "model.json").read_text())
        results = list(self._results(documents, facts["identity"], self._folder(work)))
        if not results:
            return documents
        made = Documents.of(result.document for result in results)
        made = made.drop([result.reason for result in results], [result.detail for result in results])
        if self.mode == "replace":
            gone = {result.row for result in results if result.reason is None}
            reasons = ["rephrase: replaced" if row in gone else None for row in range(len(documents))]
            documents = documents.drop(reasons)
        return Documents(pa.concat_tables([documents.table, made.table]))

    def _folder(self, work: Path) -> Path:
        """Of the answers."""
        return self.answers or work.parent / "answers"

    def _requests(self, documents: Documents) -> Iterator[tuple[int, str, ModelRequest]]:
        """Row, style and request of all that is to be asked of a batch."""
        scores = documents.scores(self.score) if self.score else np.zeros(len(documents))
        least = -np.inf if self.min_score is None else self.min_score
        most = np.inf if self.max_score is None else self.max_score
        texts = documents.column("text")
        for row, (text, score) in enumerate(zip(texts, scores, strict=True)):
            if text is None or not self.min_characters <= len(text) <= self.max_characters:
                continue
            if least <= score <= most:  # false for a document without the score
                for style in self.styles:
                    question = f"{STYLES[style].task}\n\n========\n{text}\n========"
                    messages = (Message("system", SYSTEM), Message("user", question))
                    yield row, style, ModelRequest(messages, self.max_tokens, self.temperature, self.seed)

    def _results(self, documents: Documents, identity: str, folder: Path) -> Iterator[Result]:
        originals = list(documents)
        answers = _opened(folder, max((path.stat().st_mtime_ns for path in folder.glob("answers.jsonl")), default=0))
        for row, style, request in self._requests(documents):
            original = originals[row]
            answer = answers.get(request.key(identity))
            text = _THOUGHTS.sub("", answer.text).strip() if answer else ""
            reason, detail = self._fault(original.text, text, answer, STYLES[style])
            metadata = {"rephrased_from": original.id, "rephrased_style": style, "rephrased_by": identity}
            document = replace(
                original, id=f"{original.id}#{style}", text=text, metadata={**original.metadata, **metadata}
            )
            yield Result(row, document, reason, detail)

    def _fault(self, original: str, text: str, answer: Reply | None, style: Style) -> tuple[str | None, str | None]:
        """Why an answer is of no use, if it is not."""
        if answer is None:
            return "rephrase: no answer", "the model refused the request"
        if not text:
            return "rephrase: empty", "nothing was answered"
        if answer.finish == "length":
            return "rephrase: cut off", f"at max_tokens = {self.max_tokens}"
        if match := _REFUSAL.match(text[:80]):
            return "rephrase: refusal", f"begins with {match.group()!r}"
        least = max(self.min_result_characters, style.least * len(original))
        if len(text) < least:
            return "rephrase: too short", f"{len(text)} characters of {len(original)}; at least {least:.0f} are allowed"
        share = copied(original, text)
        if share > self.max_copied:
            return "rephrase: copy", f"{share:.2f} of its runs of {_COPY_WORDS} words are the original's"
        return None, None


def copied(original: str, text: str) -> float:
    """Share of the runs of eight words of ``text`` that ``original`` has; of fewer words, 1 where it has them all."""
    words, given = text.casefold().split(), original.casefold().split()
    width = min(_COPY_WORDS, len(words))
    if not width:
        return 0.0
    known = {tuple(given[i : i + width]) for i in range(len(given) - width + 1)}
    runs = [tuple(words[i : i + width]) for i in range(len(words) - width + 1)]
    return sum(run in known for run in runs) / len(runs)


@functools.lru_cache(maxsize=1)
def _opened(folder: Path, changed_ns: int) -> Answers:
    """The answers of a folder, their places kept in memory while the file stays as it is."""
    return Answers(folder)
