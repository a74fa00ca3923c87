"""What a document is, alone and in batches: the one schema that every reader writes and every stage reads.

A document has a ``text``, or is **nested**: a dialogue or a set of questions and answers keeps its ``messages`` through
all stages, and is laid out as text at the very end (arXiv 2501.08313, section 4.1).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made when it is imported, unseen by type checkers

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.large_string()), ("learned", pa.bool_())])

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("messages", pa.list_(MESSAGE)),
        ("source", pa.string()),
        ("language", pa.string()),
        ("url", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("metadata", pa.string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""The columns of a batch and of every Parquet file between stages. ``text`` or ``messages`` is null, never both;
``metadata`` is a JSON object; ``reason`` and ``detail`` are null until a stage drops the document."""


@dataclass(frozen=True)
class Message:
    """One turn of a nested document.

    Attributes:
        role: ``system``, ``user``, ``assistant``, ``tool``; or ``document``, what questions are asked about.
        content: what is said.
        learned: whether an answer is to be learned; published dialogues have some that are not (``"weight": 0``).
    """

    role: str
    content: str
    learned: bool = True


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: the name of its file, and ``:row`` (from 1) where the file holds many; or what its source calls it, which
            need not be unique: nothing that becomes of a document is looked up by its id.
        text: without lone surrogates; empty where there are messages.
        source: where it is from: the name that a recipe gives its source, or the path of its file.
        messages: of a nested document, else empty.
        language: ISO 639-1 code, where known.
        url, time: where and when it was published, or fetched, where known.
        metadata: whatever else its source says of it; JSON values.
    """

    id: str
    text: str
    source: str
    messages: tuple[Message, ...] = ()
    language: str | None = None
    url: str | None = None
    time: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOutDocument:
    """A document that is not trained on.

    Attributes:
        text: of the document.
        source: the group that it would be trained on in, or the source that it was read from.
    """

    text: str
    source: str = ""


@dataclass(frozen=True)
class Reject:
    """Something that was set aside.

    Attributes:
        source: the path of the file.
        place: where in it: ``byte 120``, ``line 3``, ``row 7``, or nothing where it is the whole file.
        reason: one of a few, to count by: ``not UTF-8``, ``no "text"``, ...
        detail: what exactly was found.
        count: how many of its kind it stands for.
    """

    source: str
    place: str
    reason: str
    detail: str = ""
    count: int = 1

    def __str__(self) -> str:
        where = f"{self.source}, {self.place}" if self.place else self.source
        times = f"{self.count:,} times " if self.count > 1 else ""
        return f"{where}: {times}{self.reason}" + (f" ({self.detail})" if self.detail else "")


class Documents:
    """A batch of documents, immutable: every method that changes something gives a new batch of the same rows.

    Args:
        table: columns of :data:`SCHEMA`.
        first_row: which document of its shard the first one is, counted from 0; None where the documents do not follow
            each other in one shard.
    """

    def __init__(self, table: pa.Table, first_row: int | None = None) -> None:
        self.table = table
        self.first_row = first_row

    @classmethod
    def of(cls, documents: Iterable[Document]) -> Self:
        """A batch of single documents, taken for the first of a shard."""
        rows = [_row(document) for document in documents]
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
        return cls(pa.Table.from_pydict(columns, schema=SCHEMA), first_row=0)

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[Document]:
        for row in self.table.to_pylist():
            messages = tuple(
                Message(turn["role"], turn["content"], turn["learned"] is not False) for turn in row["messages"] or ()
            )
            yield Document(
                id=row["id"],
                text=row["text"] or "",
                source=row["source"],
                messages=messages,
                language=row["language"],
                url=row["url"],
                time=row["time"],
                metadata=json.loads(row["metadata"] or "{}"),
            )

    def column(self, name: str) -> list[Any]:
        """One column, null as None."""
        return self.table.column(name).to_pylist()

    def rows(self) -> slice:
        """Which documents of their shard these are: what a stage learnt of the shard is looked up by it."""
        if self.first_row is None:
            raise RuntimeError("these documents were picked from a shard, so that their rows in it are not known")
        return slice(self.first_row, self.first_row + len(self))

    def texts(self) -> list[str]:
        """Each document as one string: its text, or the contents of its messages with empty lines between them."""
        return [
            "\n\n".join(message["content"] for message in messages) if text is None else text
            for text, messages in zip(self.column("text"), self._messages(), strict=True)
        ]

    def num_bytes(self) -> np.ndarray:
        """[D] int64, the UTF-8 bytes of each document's text or of its messages' contents."""
        of_text = pc.fill_null(pc.binary_length(self.table.column("text")), 0).to_numpy().astype(np.int64)
        if self.table.column("messages").null_count < len(self):
            of_text += [sum(len(m["content"].encode()) for m in messages or ()) for messages in self._messages()]
        return of_text

    def with_column(self, name: str, values: Sequence[Any] | pa.Array | pa.ChunkedArray) -> "Documents":
        """The same documents with ``values`` [D] as their column ``name`` of :data:`SCHEMA`."""
        index, kind = SCHEMA.get_field_index(name), SCHEMA.field(name)
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind.type)
        return Documents(self.table.set_column(index, kind, array), self.first_row)

    def rewrite(self, function: Callable[[list[str]], list[str]]) -> "Documents":
        """Every text, and every content of a message, as ``function`` gives it: a list to one of equal length."""
        texts, messages = self.column("text"), self._messages()
        places = [row for row, text in enumerate(texts) if text is not None]
        inner = [(row, turn) for row, turns in enumerate(messages) for turn in range(len(turns or ()))]
        given = [texts[row] for row in places] + [messages[row][turn]["content"] for row, turn in inner]
        made = function(given)
        for row, text in zip(places, made[: len(places)], strict=True):
            texts[row] = text
        for (row, turn), content in zip(inner, made[len(places) :], strict=True):
            messages[row][turn]["content"] = content
        result = self.with_column("text", texts)
        return result.with_column("messages", messages) if inner else result

    def drop(self, reasons: Sequence[str | None], details: Sequence[str | None] | None = None) -> "Documents":
        """Mark documents as dropped.

        Args:
            reasons: [D], one of a few strings to count by; None keeps the document. The first reason stays.
            details: [D], what exactly was found.
        """
        first = [reason is not None and old is None for reason, old in zip(reasons, self.column("reason"), strict=True)]
        if not any(first):
            return self
        marked = self.with_column("reason", _where(first, reasons, self.column("reason")))
        return marked.with_column("detail", _where(first, details or [None] * len(self), self.column("detail")))

    def score(self, name: str, values: Sequence[float | None] | np.ndarray) -> "Documents":
        """The same documents with ``scores[name]`` [D]; None and NaN leave it out."""
        scores = []
        for old, value in zip(self.column("scores"), np.asarray(values, object).tolist(), strict=True):
            rest = [(key, number) for key, number in old or () if key != name]
            scores.append(rest + ([(name, float(value))] if value is not None and value == value else []))
        return self.with_column("scores", scores)

    def scores(self, name: str) -> np.ndarray:
        """[D] float64, NaN where a document has no such score."""
        return np.array([dict(scores or ()).get(name, np.nan) for scores in self.column("scores")], np.float64)

    def having(self, name: str, value: str) -> "Documents":
        """Those whose column ``name`` is ``value``."""
        return Documents(self.table.filter(pc.equal(self.table.column(name), value)))

    def where(self, chosen: Sequence[bool]) -> "Documents":
        """Those that are ``chosen`` [D]."""
        return Documents(self.table.filter(pa.array(chosen, pa.bool_())))

    def containing(self, name: str, part: str) -> "Documents":
        """Those whose column ``name`` contains ``part``."""
        return Documents(self.table.filter(pc.match_substring(self.table.column(name), part)))

    def piece(self, begin: int, end: int) -> "Documents":
        """Those from ``begin`` to before ``end``."""
        first = None if self.first_row is None else self.first_row + begin
        return Documents(self.table.slice(begin, end - begin), first)

    def kept(self) -> "Documents":
        """Those without a reason."""
        return Documents(self.table.filter(pc.is_null(self.table.column("reason"))))

    def dropped(self) -> "Documents":
        """Those with one."""
        return Documents(self.table.filter(pc.is_valid(self.table.column("reason"))))

    def _messages(self) -> list[Any]:
        return self.column("messages")


def _row(document: Document) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content, "learned": m.learned} for m in document.messages]
    return {
        "id": document.id,
        "text": None if messages else document.text,
        "messages": messages or None,
        "source": document.source,
        "language": document.language,
        "url": document.url,
        "time": document.time,
        "metadata": json.dumps(document.metadata, ensure_ascii=False) if document.metadata else None,
    }


def _where(chosen: Sequence[bool], new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    return [a if use else b for use, a, b in zip(chosen, new, old, strict=True)]
