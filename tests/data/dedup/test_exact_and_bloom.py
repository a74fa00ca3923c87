"""Exact duplicates, with and without a Bloom filter, against a dictionary of texts."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings, strategies

from leyden.core.errors import UserError
from leyden.data.builds.directory import FINISHED, StageDirectory
from leyden.data.dedup import Bloom, Exact, run_alone
from leyden.data.dedup.bloom import _integers, load_filter
from leyden.data.dedup.gathering import rank as ranks
from leyden.data.documents import Document, Documents, Message
from leyden.data.marks import write_mark
from leyden.data.parquet import DocumentsWriter

AS_IT_IS = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def copies() -> list[Document]:
    """150 documents of 60 contents: some equal, some but for case and white space."""
    generator = np.random.default_rng(3)
    contents = [" ".join(f"w{n}" for n in generator.integers(0, 50, 1 + number % 9)) for number in range(57)]
    contents += ["", "nul\x00byte", "你好 世界"]
    documents = []
    for number in range(150):
        text = contents[int(generator.integers(60))]
        shape = int(generator.integers(4))
        text = [text, text.upper(), f"  {text} ", text.replace(" ", "\n\t")][shape]
        documents.append(Document(f"d{number}", text, "memory"))
    return documents


ASIDE = "exact duplicate, case and white space aside"


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def survivors(documents: list[Document], key) -> set[str]:
    """The longest of those with equal keys; of those the one whose text, then whose identity, has the greatest hash."""
    best: dict[str, tuple] = {}
    for document, rank in zip(documents, ranks(Documents.of(documents)).tolist(), strict=True):
        rank = (*rank, document.id)
        best[key(document.text)] = max(best.get(key(document.text), rank), rank)
    return {rank[-1] for rank in best.values()}


@pytest.mark.parametrize("stage", [Exact(), Exact(normalise="none"), Bloom(), Bloom(false_positive_rate=0.4)], ids=str)
def test_one_of_each_content_survives_and_it_is_the_one_by_content(stage, copies, run):
    outcome = run(stage, copies, shards=3)
    key = plain if stage.normalise == "words" else str
    kept = {document.id for document in copies} - set(outcome.dropped)
    assert kept == survivors(copies, key)
    texts = {document.id: document.text for document in copies}
    for id_, (reason, detail) in outcome.dropped.items():
        survivor = detail.removeprefix("of ")
        wanted = ASIDE if stage.normalise == "words" else "exact duplicate"
        assert (reason, key(texts[survivor]), survivor in kept) == (wanted, key(texts[id_]), True)
    assert outcome.report["documents_stood_for"] == len(outcome.dropped)


@AS_IT_IS
@given(seed=strategies.integers(0, 1000), shards=strategies.integers(1, 9))
def test_exact_survivors_are_the_same_however_documents_are_dealt(seed, shards, copies, run):
    stage = Exact(memory_bytes=1 << 16)
    assert run(stage, copies, shards=shards, seed=seed).dropped == run(stage, copies).dropped


def test_survivors_are_the_same_with_two_workers(copies, run):
    assert run(Exact(), copies, workers=2).dropped == run(Exact(), copies).dropped


@AS_IT_IS
@given(seed=strategies.integers(0, 1000), shards=strategies.integers(1, 9))
def test_bloom_survivors_and_filter_are_the_same_however_documents_are_dealt(seed, shards, copies, run):
    stage = Bloom(false_positive_rate=0.3)  # false positives abound, and change nothing
    one, other = run(stage, copies), run(stage, copies, shards=shards, seed=seed)
    assert one.dropped == other.dropped
    assert one.report["filter"] == other.report["filter"]


def test_a_stage_runs_alone(copies, run, tmp_path):
    outcome = run(Exact(), copies)
    batches = list(run_alone(Exact(), outcome.corpus.shards, tmp_path))
    assert {id_ for batch in batches for id_ in batch.dropped().column("id")} == set(outcome.dropped)
    assert sum(map(len, batches)) == len(copies)


def test_nested_documents_are_compared_by_all_their_messages(run):
    def talk(id_: str, *turns: str) -> Document:
        return Document(id_, "", "memory", tuple(Message("user", turn) for turn in turns))

    documents = [talk("a", "one", "two"), talk("b", "One ", "two"), talk("c", "one", "three"), talk("d", "one")]
    documents.append(Document("e", "one\n\nthree", "memory"))
    assert {frozenset((id_, detail[3:])) for id_, (_, detail) in run(Exact(), documents).dropped.items()} == {
        frozenset("ab"),
        frozenset("ce"),
    }


def test_a_corpus_of_one_text_keeps_one_and_its_partitions_stay_small(run):
    documents = [Document(f"d{number}", "the same", "memory") for number in range(500)]
    outcome = run(Exact(), documents, shards=5)
    assert len(outcome.dropped) == 499
    assert outcome.report["cluster_sizes"] == {"500": 1}
    runs = sorted((outcome.corpus.work / "signatures").glob("*.keys.npy"))
    assert [len(np.load(path)) for path in runs] == [1] * 5  # one record a shard, not one a document


@pytest.mark.parametrize("stage", [Exact(), Bloom()], ids=["exact", "bloom"])
def test_no_documents_and_no_shards(stage, make_corpus, finish):
    assert finish(stage, make_corpus([])).dropped == {}
    assert finish(stage, make_corpus([[], []])).dropped == {}
    assert finish(stage, make_corpus([[Document("a", "", "memory")], []])).dropped == {}


@pytest.mark.parametrize("earlier", ["signatures", "documents"])
def test_documents_of_an_earlier_crawl_survive(earlier, copies, run, tmp_path):
    old, new = copies[:60], copies[60:]
    before = run(Exact(), old)
    path = (
        before.corpus.work / "signatures"
        if earlier == "signatures"
        else next(iter(before.corpus.shards.values())).parent
    )
    stage = Exact(against=(path,))
    assert stage.files()
    dropped = run(stage, new).dropped
    texts = {document.id: document.text for document in copies}
    known = {plain(document.text) for document in old}
    for document in new:
        if plain(document.text) in known:
            survivor = dropped[document.id][1].removeprefix("of earlier crawl's ")
            assert survivor in {other.id for other in old}
            assert plain(texts[survivor]) == plain(document.text)
    fresh = [document for document in new if plain(document.text) not in known]
    assert {document.id for document in fresh} - set(dropped) == survivors(fresh, plain)


def test_a_document_that_comes_again_is_dropped_though_its_id_is_the_same(run):
    documents = [Document("a", "one text", "memory"), Document("b", "two texts", "memory")]
    before = run(Exact(), documents)
    again = run(Exact(against=(before.corpus.work / "signatures",)), documents)
    assert again.dropped == {id_: (ASIDE, f"of earlier crawl's {id_}") for id_ in "ab"}


def test_an_earlier_build_is_what_its_last_stage_kept(tmp_path, run):
    for stage, text in (("00-read", "dropped later"), ("01-exact", "kept")):
        with DocumentsWriter(tmp_path / "stages" / stage / "documents" / "0.parquet") as writer:
            writer.write(Documents.of([Document("x", text, "memory")]))
    with pytest.raises(UserError, match="has not finished"):
        Exact(against=(tmp_path,)).files()
    last = StageDirectory(tmp_path / "stages" / "01-exact")
    write_mark(last.done("0"), [last.documents("0")], {"fingerprint": "", "counts": {}})
    write_mark(tmp_path / FINISHED, ())
    outcome = run(Exact(against=(tmp_path,)), [Document("a", "Kept ", "m"), Document("b", "dropped later", "m")])
    assert outcome.dropped == {"a": (ASIDE, "of earlier crawl's x")}
    last.documents("0").write_bytes(last.documents("0").read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"0\.parquet is damaged"):
        Exact(against=(tmp_path,)).files()
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet is not of documents: it has no column messages, text"):
        Exact(against=(tmp_path / "other.parquet",)).files()
    (tmp_path / "no.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no\.parquet cannot be read as Parquet"):
        Exact(against=(tmp_path / "no.parquet",)).files()


def test_signatures_of_other_settings_are_refused(copies, run, tmp_path):
    before = run(Exact(normalise="none"), copies[:20])
    with pytest.raises(UserError, match=r"normalise = 'none' there, 'words' here"):
        run(Exact(against=(before.corpus.work / "signatures",)), copies[20:30])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no Parquet files of documents"):
        Exact(against=(tmp_path / "nothing",)).files()


def test_an_earlier_filter_drops_what_it_holds_and_grows(copies, run):
    first = run(Bloom(expected_documents=1000), copies[:70])
    second = run(Bloom(against=first.corpus.work / "filter"), copies[70:])
    known = {plain(document.text) for document in copies[:70]}
    seen = {
        id_
        for id_, (reason, _) in second.dropped.items()
        if reason == "exact duplicate of an earlier crawl, case and white space aside"
    }
    assert seen == {document.id for document in copies[70:] if plain(document.text) in known}
    fresh = [document for document in copies[70:] if plain(document.text) not in known]
    assert {document.id for document in fresh} - set(second.dropped) == survivors(fresh, plain)
    whole = run(Bloom(expected_documents=1000), copies)
    assert second.report["filter"] == whole.report["filter"]


def test_the_filter_has_the_false_positive_rate_asked_and_no_false_negative(run):
    documents = [Document(f"d{number}", f"text {number}", "memory") for number in range(2000)]
    outcome = run(Bloom(false_positive_rate=0.02), documents)
    filter_ = load_filter(outcome.corpus.work / "filter", "words", 0.02)
    assert all(
        value in filter_
        for path in (outcome.corpus.work / "signatures").glob("*.hashes.npy")
        for value in _integers(np.load(path))
    )
    wrong = sum(xxhash.xxh3_128_intdigest(b"other %d" % number) in filter_ for number in range(50_000)) / 50_000
    assert wrong == pytest.approx(0.02, rel=0.2)
    assert outcome.report["filter"]["false_positive_rate"] == pytest.approx(wrong, rel=0.2)
    assert outcome.report["filter"]["bytes"] == pytest.approx(-2000 * np.log(0.02) / np.log(2) ** 2 / 8, rel=0.02)


def test_a_filter_that_is_too_full_is_refused(copies, run):
    full = run(Bloom(expected_documents=8), copies)
    with pytest.raises(UserError, match=r"holds \d+ documents and takes 0\.\d+ of new texts for seen, where 0\.001"):
        run(Bloom(against=full.corpus.work / "filter"), copies[:5])


def test_a_filter_that_is_not_one_is_refused(copies, run, tmp_path):
    outcome = run(Bloom(), copies[:20])
    directory = outcome.corpus.work / "filter"
    with pytest.raises(UserError, match="normalise = 'words', this stage has 'none'"):
        load_filter(directory, "none", 0.1)
    (directory / "filter.bloom").write_bytes((directory / "filter.bloom").read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        load_filter(directory, "words", 0.1)
    with pytest.raises(UserError, match="has no filter"):
        load_filter(tmp_path, "words", 0.1)
    assert json.loads((directory / "settings.json").read_text())["normalise"] == "words"
