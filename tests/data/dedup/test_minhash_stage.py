"""Near-duplicates: the clusters, their survivors, and what is said of them, against all pairs compared."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from leyden.core.errors import UserError
from leyden.data.dedup import MinHash
from leyden.data.dedup.clusters import _edges_of_partition, offsets_of
from leyden.data.dedup.gathering import RANK, Gathered, note_buckets, rank
from leyden.data.dedup.lsh import collision_probability
from leyden.data.dedup.runs import Runs, save_array
from leyden.data.dedup.verdicts import read_verdicts
from leyden.data.documents import Document, Documents, Message

PLAIN = MinHash(evidence_documents=0)


def shingles(text: str, length: int = 5) -> set[tuple[str, ...]]:
    words = "".join(c for c in text.lower() if c not in ",.!").split()
    return {tuple(words[start : start + length]) for start in range(max(1, len(words) - length + 1))}


def similarity(left: str, right: str) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b)


def ranks(documents: list[Document]) -> dict[str, tuple]:
    return dict(zip((d.id for d in documents), rank(Documents.of(documents)).tolist(), strict=True))


def test_what_meets_is_what_is_alike_and_the_first_by_content_survives(families, run):
    """With many bands of many rows the curve is nearly a step: clusters are those of all pairs above it."""
    stage = MinHash(bands=60, rows=6, evidence_documents=0)  # 0.5 % at 0.22, 99.98 % at 0.71
    alike = {d.id: {d.id} for d in families}
    for one, other in itertools.combinations(families, 2):
        pair = similarity(one.text, other.text)
        if pair > 0.6:
            union = alike[one.id] | alike[other.id]
            alike.update(dict.fromkeys(union, union))
    order = ranks(families)
    outcome = run(stage, families, shards=4)
    sure = {id_ for id_ in alike if not id_.endswith("much")}  # pairs with these lie on the slope of the curve
    for id_ in sure:
        members = {other for other in alike[id_] if other in sure}
        first = max(alike[id_], key=order.__getitem__)
        assert (id_ in outcome.dropped) == (members != {id_} and id_ != first) or "much" in first
    assert {id_ for id_ in outcome.dropped if id_ in sure} <= {id_ for id_ in sure if len(alike[id_]) > 1}


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=strategies.integers(0, 1000), shards=strategies.integers(1, 9), verify=strategies.booleans())
def test_survivors_are_the_same_however_documents_are_dealt(seed, shards, verify, families, run):
    stage = MinHash(evidence_documents=0, verify=verify, memory_bytes=1 << 16)
    assert run(stage, families, shards=shards, seed=seed).dropped == run(stage, families).dropped


@pytest.mark.slow
def test_survivors_and_report_are_the_same_with_two_workers(families, run):
    stage = MinHash(evidence_documents=60, verify=True)
    one, other = run(stage, families, seed=1), run(stage, families, shards=3, workers=2)
    assert one.dropped == other.dropped
    assert one.report == other.report


def test_planted_near_duplicates_are_found_at_the_rate_of_the_curve(run):
    generator = np.random.default_rng(0)
    documents, expected = [], []
    for number in range(250):
        words = [f"w{word:x}" for word in generator.integers(0, 1 << 40, 100)]
        edited = list(words)
        for place in generator.choice(100, 1 + number % 5, replace=False):
            edited[place] = f"e{place}"
        one, other = " ".join(words), " ".join(edited)
        documents += [Document(f"{number} one", one, "memory"), Document(f"{number} other", other, "memory")]
        expected.append(collision_probability(np.array(similarity(one, other)), 14, 8))
    found = len(run(PLAIN, documents).dropped)
    spread = np.sqrt(sum(p * (1 - p) for p in expected))
    assert 30 < sum(expected) < 240
    assert abs(found - sum(expected)) < 4 * spread


def test_verified_documents_are_dropped_for_one_that_they_are_like(families, run):
    chain = [f"c{number}" for number in range(120)]  # each link is like the next, the last is unlike the first
    documents = [*families]
    for step in range(8):
        documents.append(Document(f"chain {step}", " ".join(chain[10 * step : 10 * step + 50]), "memory"))
    stage = MinHash(bands=60, rows=4, verify=True, evidence_documents=0)
    texts = {document.id: document.text for document in documents}
    outcome, loose = run(stage, documents), run(stage.model_copy(update={"verify": False}), documents)
    assert set(outcome.dropped) < set(loose.dropped)
    for id_, (_, detail) in outcome.dropped.items():
        survivor, _, value = detail.removeprefix("of ").partition(", similarity ")
        exact = similarity(texts[id_], texts[survivor])
        assert (survivor in outcome.dropped, float(value)) == (False, pytest.approx(exact, abs=6e-4))
        assert exact >= stage.similarity()
    kept = [id_ for id_ in texts if id_ not in outcome.dropped]
    rows = [row for name in outcome.corpus.shards for row in read_verdicts(outcome.corpus.work, name).to_pylist()]
    clustered = {row["id"] for row in rows}
    joined = [pair for pair in itertools.combinations(kept, 2) if set(pair) <= clustered]
    assert all(similarity(texts[a], texts[b]) < stage.similarity() for a, b in joined)


def test_partitions_are_as_many_as_the_memory_asks_and_change_nothing(families, run):
    small, large = PLAIN.model_copy(update={"memory_bytes": 1 << 16}), PLAIN
    one, other = run(small, families), run(large, families)
    runs = (other.corpus.work / "signatures").glob("*.keys.npy")
    records = sum(len(np.load(path)) for path in runs)
    assert records <= 120 * 14
    wanted = -(-records * (8 + 4 + 4) * 4 // (1 << 16))
    assert wanted > 1
    assert (one.report["partitions"], other.report["partitions"]) == (wanted, 1)
    assert list(one.corpus.scratch.glob("edges-*"))  # what only the way there needed, and is removed with it
    assert one.dropped == other.dropped


@pytest.mark.parametrize("shards", [[], [[]], [[Document("a", "", "memory")], []]])
def test_no_documents_and_no_shards(shards, make_corpus, finish):
    outcome = finish(MinHash(verify=True), make_corpus(shards))
    assert outcome.dropped == {}
    assert outcome.report["clusters"] == 0


def test_documents_without_words_are_compared_with_none_and_short_ones_as_a_whole(run):
    texts = ["", " \n", "...", "Hello", "hello!", "hello there", "\x00", "a\x00b", "a\x00b."]
    dropped = run(PLAIN, [Document(str(i), text, "memory") for i, text in enumerate(texts)]).dropped
    assert dropped == {"3": ("near-duplicate", "of 4"), "7": ("near-duplicate", "of 8")}


def test_chinese_and_thai_near_duplicates_are_found_by_characters(run):
    generator = np.random.default_rng(1)
    texts = ["".join(chr(c) for c in generator.integers(start, start + 40, 200)) for start in (0x4E00, 0x0E01, 0x3042)]
    documents = [Document(f"{i}", text, "memory") for i, text in enumerate(texts)]
    documents += [
        Document(f"{i} edited", text[:100] + "。" + text[101:] + " !", "memory") for i, text in enumerate(texts)
    ]
    dropped = run(PLAIN, documents).dropped
    assert sorted(tuple(sorted((id_, detail[3:]))) for id_, (_, detail) in dropped.items()) == [
        (f"{i}", f"{i} edited") for i in range(3)
    ]


def test_the_memory_of_a_partition_is_within_its_budget(tmp_path):
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 1 << 18, 400_000).astype(np.uint64) << np.uint64(46)
    shards = [Gathered(tmp_path, name, None) for name in "ab"]
    for shard, key in zip(shards, np.split(keys, 2), strict=True):
        save_array(shard["ranks.npy"], np.zeros(200_000, RANK))
        note_buckets(shard, key, None, np.arange(200_000))
    runs = Runs(tuple(shard.run for shard in shards))
    budget = 1 << 21
    ranges = runs.ranges(budget)
    assert len(ranges) == -(-runs.num_records() * 64 // budget)
    tracemalloc.start()
    _edges_of_partition(runs, offsets_of(shards), (tmp_path / "edges.npy", ranges[0]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < budget


def test_dialogues_are_compared_by_their_messages_and_only_marked(families, run):
    def talk(document: Document) -> Document:
        half = len(document.text) // 2
        turns = (Message("user", document.text[:half]), Message("assistant", document.text[half:]))
        return Document(document.id, "", "memory", turns)

    talks = [talk(document) for document in families[:40]]
    outcome = run(PLAIN, talks)
    assert 10 <= len(outcome.dropped) <= 30
    assert outcome.messages == {d.id: [message.content for message in d.messages] for d in talks}


def test_a_corpus_of_one_text_is_one_cluster_of_small_partitions(run):
    documents = [Document(f"d{number}", "the same words as all the others", "memory") for number in range(300)]
    outcome = run(PLAIN, documents, shards=4)
    assert len(outcome.dropped) == 299
    assert len({detail for _, detail in outcome.dropped.values()}) == 1
    for path in (outcome.corpus.work / "signatures").glob("*.keys.npy"):
        assert len(np.load(path)) == 14


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("earlier", ["signatures", "documents"])
def test_documents_of_an_earlier_crawl_survive(earlier, verify, families, run):
    stage = MinHash(evidence_documents=0, verify=verify)
    old, new = families[:60], families[40:]
    before = run(stage, old)
    first = next(iter(before.corpus.shards.values())).parent
    again = stage.model_copy(
        update={"against": (before.corpus.work / "signatures" if earlier == "signatures" else first,)}
    )
    if verify and earlier == "signatures":
        with pytest.raises(UserError, match="needs the texts of earlier documents"):
            run(again, new)
        return
    outcome = run(again, new)
    seen = {document.id for document in old} & {document.id for document in new}
    marks = {f"{family} marks" for family in range(10, 15)}
    assert marks <= seen
    alone = run(stage, new)
    assert {i for i in alone.dropped if int(i.split()[0]) >= 15} == {
        i for i in outcome.dropped if int(i.split()[0]) >= 15
    }
    survivors = {
        detail.removeprefix("of earlier crawl's ").partition(",")[0]
        for i, (_, detail) in outcome.dropped.items()
        if int(i.split()[0]) < 15
    }
    assert survivors <= {document.id for document in old}


def test_earlier_signatures_of_another_curve_are_refused(families, run):
    before = run(PLAIN, families[:8])
    other = MinHash(bands=20, rows=5, against=(before.corpus.work / "signatures",))
    with pytest.raises(UserError, match=r"bands = 14 there, 20 here"):
        run(other, families[8:16])


def test_the_report_shows_curve_pairs_clusters_and_seeds(families, run):
    report = run(MinHash(evidence_documents=100), families).report
    assert (report["bands"], report["rows"]) == (14, 8)
    assert sum(int(size) * count for size, count in report["cluster_sizes"].items()) == report["clustered_documents"]
    pairs = sum(part["pairs"] for part in report["curve"])
    assert pairs == 100 * 8
    for part in report["curve"]:
        error = np.sqrt(part["theory"] * (1 - part["theory"]) / part["pairs"])
        assert abs(part["measured"] - part["theory"]) < 5 * error + 0.02
    texts = {document.id: document.text for document in families}
    for pair in report["pairs"]:
        assert pair["similarity"] == pytest.approx(similarity(texts[pair["dropped"]], texts[pair["survivor"]]))
    assert report["seeds"]["documents"] == 100
    stage, work = MinHash(), run(MinHash(evidence_documents=20), families).corpus.work
    assert [plot.title for plot in stage.plots(work)] == ["Near-duplicates that meet, by similarity"]
    assert stage.plots(work.parent) == []
    assert 0.5 < report["seeds"]["jaccard_least"] <= report["seeds"]["jaccard_mean"] <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"bands": 4},
        {"rows": 4},
        {"bands": 4, "rows": 4, "threshold": 0.8},
        {"threshold": 1.5},
        {"memory_bytes": 0},
        {"num_hashes": 64},
    ],
)
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(UserError, match="recipe: "):
        MinHash.parse(settings, "recipe")
