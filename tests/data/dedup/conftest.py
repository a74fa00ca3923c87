"""Builds of a single stage, small corpora."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from leyden.data.documents import Document, Documents
from leyden.data.engine import DataEngine
from leyden.data.parquet import DocumentsWriter, read_batches
from leyden.data.stage import Corpus, Stage


@dataclass(frozen=True)
class Outcome:
    """What a stage came to: the reason and the detail of every dropped document, what is left, and its work."""

    dropped: dict[str, tuple[str, str]]
    texts: dict[str, str]
    messages: dict[str, list[str]]
    corpus: Corpus
    report: dict[str, object]


def corpus_of(shards: Sequence[Sequence[Document]], root: Path, workers: int = 1, batch: int = 7) -> Corpus:
    """A corpus of the shards' documents, ``batch`` documents a batch."""
    paths = {}
    for index, documents in enumerate(shards):
        path = root / "shards" / f"{index}.parquet"
        with DocumentsWriter(path) as writer:
            for begin in range(0, len(documents), batch):
                writer.write(Documents.of(documents[begin : begin + batch]))
        paths[f"part {index}/{len(shards)}"] = path
    return Corpus(paths, root / "work", DataEngine(workers))


def outcome_of(stage: Stage, corpus: Corpus) -> Outcome:
    """Run a stage over a corpus."""
    stage.prepare(corpus)
    dropped, texts, messages = {}, {}, {}
    for shard, path in corpus.shards.items():
        for documents in read_batches(path):
            made = stage.apply(documents, shard, corpus.work)
            assert made.column("id") == documents.column("id")
            for id_, reason, detail in zip(*(made.column(name) for name in ("id", "reason", "detail")), strict=True):
                if reason is not None:
                    dropped[id_] = (reason, detail)
            texts.update(zip(made.column("id"), made.texts(), strict=True))
            for document in made:
                messages[document.id] = [message.content for message in document.messages]
    return Outcome(dropped, texts, messages, corpus, stage.report(corpus.work))


@pytest.fixture
def run(tmp_path_factory) -> Callable[..., Outcome]:
    """Run a stage over documents that are dealt into shards."""

    def run(stage: Stage, documents: Sequence[Document], *, shards: int = 2, seed: int | None = None, workers: int = 1):
        order, borders = np.arange(len(documents)), np.linspace(0, len(documents), shards + 1).astype(int)
        if seed is not None:
            generator = np.random.default_rng(seed)
            order = generator.permutation(order)
            borders = np.sort(
                np.concatenate([[0, len(documents)], generator.integers(0, len(documents) + 1, shards - 1)])
            )
        dealt = [[documents[i] for i in order[a:b]] for a, b in zip(borders, borders[1:], strict=False)]
        return outcome_of(stage, corpus_of(dealt, tmp_path_factory.mktemp("build"), workers))

    return run


@pytest.fixture
def make_corpus(tmp_path_factory) -> Callable[[Sequence[Sequence[Document]]], Corpus]:
    """A corpus of given shards, in a directory of its own."""
    return lambda shards: corpus_of(shards, tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def finish() -> Callable[[Stage, Corpus], Outcome]:
    """Run a stage over a corpus."""
    return outcome_of


@pytest.fixture(scope="session")
def families() -> list[Document]:
    """120 documents: 30 texts with three kin each: edited a little, edited a lot, in capitals with marks."""
    generator = np.random.default_rng(7)
    documents = []
    for family in range(30):
        text = [f"w{number}" for number in generator.integers(0, 5000, generator.integers(30, 120))]
        little, much = list(text), list(text)
        little[int(generator.integers(len(text)))] = "edited"
        for place in generator.choice(len(text), len(text) // 6, replace=False):
            much[place] = f"edit{place}"
        kin = {"": " ".join(text), "little": " ".join(little), "much": " ".join(much)}
        kin["marks"] = " ".join(text).upper().replace(" W1", ",  w1") + "!"
        documents += [Document(f"{family} {name}", text, "memory") for name, text in kin.items()]
    return documents
