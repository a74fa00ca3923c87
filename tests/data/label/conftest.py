import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stub_endpoint import Server, serving

from leyden.data.documents import Document
from leyden.data.engine import DataEngine
from leyden.data.label import Reply
from leyden.data.parquet import DocumentsWriter, batches, read_batches
from leyden.data.stage import Corpus


class FakeModel:
    """Answers by a function of the request; counts what it is asked."""

    def __init__(self, answer: Callable[..., str | Reply]) -> None:
        self.identity = "fake"
        self.asked = []
        self._answer = answer

    def complete(self, requests):
        for index in reversed(range(len(requests))):  # any order is allowed
            self.asked.append(requests[index])
            answer = self._answer(requests[index])
            yield index, answer if isinstance(answer, Reply) else Reply(answer)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with serving() as start:
        yield start


@pytest.fixture
def fake():
    return FakeModel


@pytest.fixture
def make_corpus(tmp_path):
    """A corpus of documents cut into shards, with a work directory of its own."""

    def make(documents: list[Document], cuts: int = 1, name: str = "a", model=None, workers: int = 1) -> Corpus:
        shards = {}
        for number in range(cuts):
            path = tmp_path / name / f"s{number}.parquet"
            with DocumentsWriter(path) as file:
                for batch in batches(documents[number::cuts]):
                    file.write(batch)
            shards[f"s{number}"] = path
        work = tmp_path / name / "stage" / "work"
        work.mkdir(parents=True)
        return Corpus(shards, work, DataEngine(workers), None if model is None else lambda path: model)

    return make


@pytest.fixture
def run_stage():
    """Prepare and apply a stage as a build does; every row, by id."""

    def run(stage, corpus: Corpus) -> dict[str, dict]:
        stage.prepare(corpus)
        rows = {}
        for shard, path in corpus.shards.items():
            for batch in read_batches(path):
                for row in stage.apply(batch, shard, corpus.work).table.to_pylist():
                    row["scores"] = dict(row["scores"] or ())
                    row["metadata"] = json.loads(row["metadata"] or "{}")
                    rows[row["id"]] = row
        return rows

    return run


@pytest.fixture
def model_directory(tmp_path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    return directory
