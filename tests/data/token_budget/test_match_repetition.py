"""Repetition-matched down-sampling, against figures by hand and a count of every use of every document."""

import collections
import random
from pathlib import Path

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Document, Documents
from leyden.data.engine import DataEngine
from leyden.data.parquet import DocumentsWriter
from leyden.data.stage import Corpus
from leyden.data.token_budget import MatchRepetition, match_source

TENTHS = (np.arange(1000) + 0.5) / 1000  # draws of 1000 documents, evenly spread


def test_whole_epochs_by_hand() -> None:
    # 1000 documents of 10 tokens; the full run takes 30 000, so 3 epochs; a trial of 3000 keeps 100 documents.
    found = match_source(TENTHS, np.full(1000, 10.0), full_tokens=30_000, trial_tokens=3_000)
    assert found.asked_epochs == found.achieved_epochs == 3
    assert found.kept_tokens == 1000
    assert found.asked_frequencies == {"3": 1000}
    assert found.achieved_frequencies == {"3": 100}


def test_a_part_of_an_epoch_by_hand() -> None:
    # 2.5 epochs: half of the documents three times. A trial of a tenth: 100 documents, half of them three times.
    found = match_source(TENTHS, np.full(1000, 10.0), full_tokens=25_000, trial_tokens=2_500)
    assert found.asked_frequencies == {"2": 500, "3": 500}
    assert found.achieved_frequencies == {"2": 50, "3": 50}


def test_less_than_an_epoch_repeats_nothing() -> None:
    # The full run uses a quarter of the documents, once; a trial of 500 tokens keeps 50, once.
    found = match_source(TENTHS, np.full(1000, 10.0), full_tokens=2_500, trial_tokens=500)
    assert found.asked_frequencies == {"1": 250}
    assert found.achieved_frequencies == {"1": 50}
    assert found.achieved_epochs == 1


def test_a_trial_as_large_as_the_full_run_keeps_all() -> None:
    found = match_source(TENTHS, np.full(1000, 10.0), full_tokens=20_000, trial_tokens=20_000)
    assert found.cut == 1
    assert found.achieved_frequencies == found.asked_frequencies == {"2": 1000}


def test_uneven_documents_counted_by_going_through_them() -> None:
    """Achieved frequencies against a stream that reads the kept documents again and again until the trial ends."""
    rng = np.random.default_rng(0)
    draws, tokens = rng.random(5000), rng.integers(1, 400, 5000).astype(float)
    full = 3.7 * tokens.sum()
    found = match_source(draws, tokens, full_tokens=full, trial_tokens=full / 20)
    assert found.achieved_epochs == pytest.approx(3.7, rel=1e-2)
    kept = np.flatnonzero(draws < found.cut)
    order = kept[np.argsort(draws[kept])]
    uses: collections.Counter[int] = collections.Counter()
    taken, position = 0.0, 0
    while taken + tokens[order[position % len(order)]] / 2 <= full / 20:
        uses[int(order[position % len(order)])] += 1
        taken += tokens[order[position % len(order)]]
        position += 1
    counted = collections.Counter(str(times) for times in uses.values())
    for times in ("3", "4"):
        assert abs(counted[times] - found.achieved_frequencies[times]) <= 1
    share = found.achieved_frequencies["4"] / len(kept)
    assert share == pytest.approx(found.asked_frequencies["4"] / 5000, abs=0.06)


def test_trials_that_cannot_be() -> None:
    with pytest.raises(UserError, match="more often than the full run"):
        match_source(TENTHS, np.ones(1000), full_tokens=10, trial_tokens=11, name="web")
    with pytest.raises(UserError, match="less than one document"):
        match_source(TENTHS, np.full(1000, 10.0), full_tokens=30_000, trial_tokens=3)
    with pytest.raises(UserError, match="must not exceed"):
        MatchRepetition.parse({"full_tokens": 10, "trial_tokens": 11}, "stage")


@pytest.fixture
def corpus(tmp_path: Path):
    def build(documents: list[Document], shards: int, name: str) -> Corpus:
        paths = {}
        for index in range(shards):
            paths[f"{index}"] = tmp_path / name / f"{index}.parquet"
            with DocumentsWriter(paths[f"{index}"]) as writer:
                writer.write(Documents.of(documents[index::shards]))
        return Corpus(paths, tmp_path / name / "work", DataEngine())

    return build


def kept(stage: MatchRepetition, corpus: Corpus) -> set[str]:
    stage.prepare(corpus)
    results = [stage.apply(batch, "any", corpus.work) for batch in corpus.batches()]
    return {name for result in results for name in result.kept().column("id")}


def test_the_stage_matches_each_source(corpus) -> None:
    """The paper's shape: half of the trial from the web, half from what is tested, each as often as in the full run."""
    rng = random.Random(1)
    given = [
        Document(f"{source}{n}", f"{source} {n} " + "x" * rng.randrange(50, 150), source)
        for source, count in (("web", 900), ("new", 100))
        for n in range(count)
    ]
    sizes = {d.id: len(d.text) for d in given}
    unique = {name: sum(sizes[d.id] for d in given if d.source == name) for name in ("web", "new")}
    stage = MatchRepetition(
        full_tokens=2 * (unique["web"] + unique["new"]),
        trial_tokens=(unique["web"] + unique["new"]) // 5,
        bytes_per_token=1.0,
        full_shares={"web": 0.8, "new": 0.2},
        trial_shares={"web": 0.5, "new": 0.5},
    )
    one, four = corpus(given, 1, "one"), corpus(given[::-1], 4, "four")
    chosen = kept(stage, one)
    assert chosen == kept(stage, four)
    report = stage.report(one.work)
    for name, full_share in (("web", 0.8), ("new", 0.2)):
        left = sum(sizes[document] for document in chosen if document.startswith(name))
        asked = stage.full_tokens * full_share / unique[name]
        achieved = stage.trial_tokens * 0.5 / left
        assert achieved == pytest.approx(max(1, asked), rel=0.05)
        record = report[name]
        assert isinstance(record, dict)
        assert record["kept_tokens"] == left
        assert record["asked_epochs"] == pytest.approx(asked)
        assert record["achieved_epochs"] == pytest.approx(achieved)


def test_duplicates_and_sources_without_a_share_are_refused(corpus) -> None:
    twice = [Document("a", "same text", "web"), Document("b", "same text", "web")]
    stage = MatchRepetition(full_tokens=100, trial_tokens=10)
    with pytest.raises(UserError, match=r'1 documents have the text of another.*kind = "exact"'):
        stage.prepare(corpus(twice, 1, "twice"))
    wrong = stage.model_copy(update={"full_shares": {"wb": 1.0}})
    with pytest.raises(UserError, match=r"without one: \['web'\], not there: \['wb'\]"):
        wrong.prepare(corpus(twice[:1], 1, "wrong"))
