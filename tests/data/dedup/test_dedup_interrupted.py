"""Every stage that writes files, killed at one of them and run again."""

import itertools
from dataclasses import replace

import pytest

import leyden.data.dedup.runs
from leyden.core.files import atomic_file
from leyden.data.dedup import Bloom, Exact, MinHash, Paragraphs, Substrings

STAGES = {
    "exact": Exact(),
    "bloom": Bloom(),
    "minhash": MinHash(verify=True, evidence_documents=0),
    "paragraphs": Paragraphs(unit="paragraph", min_bytes=5),
    "substrings": Substrings(length=10),
}


@pytest.mark.parametrize("kind", STAGES)
def test_killed_at_any_file_and_run_again_gives_the_same(kind, families, make_corpus, finish, monkeypatch):
    copies = [replace(document, text=f" {document.text.title()}") for document in families[:15]]
    stage, deal = (
        STAGES[kind],
        [[*families[begin : begin + 15], *copies[begin // 3 :: 3]] for begin in range(0, 45, 15)],
    )
    whole = finish(stage, make_corpus(deal))
    assert len(whole.dropped) >= 10
    for place in itertools.count(0, 5):
        written, corpus = itertools.count(), make_corpus(deal)

        def dying(path, written=written, place=place):
            if next(written) == place:
                raise KeyboardInterrupt
            return atomic_file(path)

        with monkeypatch.context() as patch:
            patch.setattr(leyden.data.dedup.runs, "atomic_file", dying)
            try:
                stage.prepare(corpus)
            except KeyboardInterrupt:
                again = finish(stage, corpus)
            else:
                break  # it writes fewer files than that
        assert (again.dropped, again.texts, again.report) == (whole.dropped, whole.texts, whole.report)
    assert place >= 10
