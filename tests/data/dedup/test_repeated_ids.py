"""Documents with one id: nothing that becomes of one may become of another."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from leyden.data.dedup import Bloom, Contamination, Exact, MinHash, Paragraphs, Substrings
from leyden.data.documents import Document, Documents
from leyden.data.label import Perplexity
from leyden.data.parquet import DocumentsWriter, read_batches
from leyden.data.stage import Corpus, Stage

LINES = [" ".join(f"{letter}{n}" for n in range(12)) for letter in "abcdefgh"]
SOME = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(["p1", "p2", "p3"]), strategies.lists(strategies.integers(0, 7), max_size=4)
    ),
    min_size=2,
    max_size=12,
)
FEW = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Stage]:
    """Every stage that keeps what it learnt of single documents in files, and one that marks documents."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "good.txt").write_text("\n".join(LINES[:4]))
    (folder / "items.txt").write_text("\n".join(LINES[5:]))
    return {
        "exact": Exact(),
        "bloom": Bloom(),
        "verified": MinHash(verify=True, evidence_documents=5),
        "paragraphs": Paragraphs(min_left_characters=0),
        "substrings": Substrings(length=6, min_left_characters=0),
        "contamination": Contamination(sets=(folder / "items.txt",)),
        "perplexity": Perplexity(reference=(folder / "good.txt",), order=2, keep=("head",)),
    }


def fates(stage: Stage, corpus: Corpus) -> list[tuple]:
    """Whether each document was kept, its text and its scores, by its number in the metadata."""
    stage.prepare(corpus)
    found = []
    for shard, path in corpus.shards.items():
        for batch in read_batches(path):
            made = stage.apply(batch, shard, corpus.work)
            numbers = [document.metadata["number"] for document in made]
            columns = (made.column("reason"), made.texts(), made.column("scores"))
            found += [(n, r is None, t, dict(s or ())) for n, r, t, s in zip(numbers, *columns, strict=True)]
    return sorted(found)


@pytest.mark.parametrize(
    "kind",
    ["exact", "bloom", "verified", "paragraphs", "substrings", "contamination", "perplexity"],
)
@FEW
@given(given_=SOME, shards=strategies.integers(1, 4))
def test_documents_with_one_id_fare_as_with_an_id_each(kind, given_, shards, stages, make_corpus):
    """Which copy stays may differ, as ids choose among copies; how many of each content stay, and what of it, not."""
    texts = [
        "\n".join(LINES[line] for line in lines) + f"\nown {number}" * (number % 2)
        for number, (_, lines) in enumerate(given_)
    ]
    repeated = [
        Document(id_, text, "s", metadata={"number": n})
        for n, ((id_, _), text) in enumerate(zip(given_, texts, strict=True))
    ]
    distinct = [replace(document, id=f"{document.id} {n}") for n, document in enumerate(repeated)]
    one, other = (
        fates(stages[kind], make_corpus([list(part) for part in np.array_split(np.array(documents, object), shards)]))
        for documents in (repeated, distinct)
    )
    if kind in ("paragraphs", "substrings"):
        remains = [
            sorted(word for _, _, text, _ in fate for word in text.split() if word[0] in "abcdefgh")
            for fate in (one, other)
        ]
        assert remains[0] == remains[1]
    elif kind in ("exact", "bloom", "verified"):
        contents = [sorted(text for _, kept, text, _ in fate if kept) for fate in (one, other)]
        assert contents[0] == contents[1]
    else:
        assert one == other
    dealt = np.random.default_rng(len(texts)).permutation(np.array(repeated, object))
    again = fates(stages[kind], make_corpus([list(part) for part in np.array_split(dealt, 3)]))
    assert again == one


def test_a_batch_knows_its_rows_and_one_that_was_picked_does_not(tmp_path):
    with DocumentsWriter(tmp_path / "a.parquet") as writer:
        for size in (3, 0, 2):
            writer.write(Documents.of([Document("same", str(n), "s") for n in range(size)]))
    first, second = read_batches(tmp_path / "a.parquet")
    assert (first.rows(), second.rows()) == (slice(0, 3), slice(3, 5))
    assert second.drop(["no", None]).score("a", [1, 2]).rewrite(list).rows() == slice(3, 5)
    with pytest.raises(RuntimeError, match="picked"):
        second.drop(["no", None]).kept().rows()
