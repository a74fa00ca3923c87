import json
import random

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Document, Message
from leyden.data.label import Perplexity, read_arpa, train_ngrams, write_arpa
from leyden.tokenizer import GaveUpError, Tokenizer

PROSE = "the river runs past the old mill and the mill wheel turns in the river while the miller sleeps"
WORDS = PROSE.split()


def prose(rng, lines=4):
    return "\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in (rng.randrange(len(WORDS)) for _ in range(lines)))


def noise(rng):
    words = WORDS + [f"zq{n}" for n in range(30)]
    return " ".join(rng.choice(words) for _ in range(60))


@pytest.fixture
def reference(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "reference.jsonl"
    path.write_text("".join(json.dumps({"text": prose(rng)}) + "\n" for _ in range(40)))
    return path


@pytest.fixture
def documents():
    rng = random.Random(2)
    good = [Document(f"good{n}", prose(rng), "t", language="en") for n in range(30)]
    bad = [Document(f"bad{n}", noise(rng), "t", language="en", metadata={"n": n}) for n in range(70)]
    return [*good, *bad, Document("empty", "", "t"), Document("blank", " \n\n ", "t")]


def test_buckets_follow_perplexity_whatever_the_shards(reference, documents, make_corpus, run_stage):
    stage = Perplexity(reference=(reference,), order=3, keep=("head", "middle"))
    one = make_corpus(documents, 1, "one")
    rows = run_stage(stage, one)
    many = run_stage(stage, make_corpus(documents[::-1], 4, "many"))
    assert rows == many
    buckets = {id_: row["metadata"]["perplexity"] for id_, row in rows.items()}
    assert {buckets[f"good{n}"] for n in range(30)} == {"head"}
    bad = sorted((rows[f"bad{n}"]["scores"]["perplexity"], buckets[f"bad{n}"]) for n in range(70))
    assert [bucket for _, bucket in bad] == ["middle"] * 30 + ["tail"] * 40
    assert min(bad)[0] > max(rows[f"good{n}"]["scores"]["perplexity"] for n in range(30))
    assert {row["reason"] for id_, row in rows.items() if buckets[id_] == "tail"} == {"perplexity: tail"}
    assert {row["reason"] for id_, row in rows.items() if buckets[id_] != "tail"} == {None}
    assert buckets["empty"] == buckets["blank"] == "tail" and "perplexity" not in rows["empty"]["scores"]
    assert rows["bad3"]["metadata"]["n"] == 3 and "the head is up to" in rows["bad3"]["detail"]
    report = stage.report(one.work)
    assert report["scored"] == 100
    assert report["head up to"] == max(rows[f"good{n}"]["scores"]["perplexity"] for n in range(30))


def test_perplexity_is_that_of_a_naive_loop(reference, documents, make_corpus, run_stage):
    rows = run_stage(Perplexity(reference=(reference,), order=3), make_corpus(documents))
    lines = [json.loads(line)["text"] for line in reference.read_text().splitlines()]
    model = train_ngrams([line.split() for text in lines for line in text.split("\n")], 3)
    for document in documents[:5] + documents[30:35]:
        total = count = 0
        for line in document.text.replace("1", "0").split("\n"):
            digits = "".join("0" if c.isdigit() else c for c in line).split()
            logs = model.log_probabilities(model.encode([digits]))
            total, count = total + logs.sum(), count + len(digits) + 1
        assert rows[document.id]["scores"]["perplexity"] == pytest.approx(10 ** (-total / count), rel=1e-6)


def test_other_languages_are_left_alone(reference, make_corpus, run_stage):
    documents = [Document("a", "the river", "t", language="en"), Document("b", "der Fluss", "t", language="de")]
    rows = run_stage(Perplexity(reference=(reference,), language="en", keep=("tail",)), make_corpus(documents))
    assert "perplexity" in rows["a"]["scores"] and rows["b"]["scores"] == {} and rows["b"]["metadata"] == {}
    assert rows["b"]["reason"] is None


def test_a_given_arpa_file_scores_as_the_text_that_it_is_of(reference, documents, make_corpus, run_stage, tmp_path):
    stage = Perplexity(reference=(reference,), order=3)
    corpus = make_corpus(documents, 1, "one")
    rows = run_stage(stage, corpus)
    from leyden.data.label import NGramModel

    write_arpa(NGramModel.load(corpus.work / "model"), tmp_path / "m.arpa.gz")
    assert len(read_arpa(tmp_path / "m.arpa.gz").orders) == 3
    again = run_stage(Perplexity(model=tmp_path / "m.arpa.gz"), make_corpus(documents, 1, "two"))
    for id_ in ("good1", "bad1"):
        assert again[id_]["scores"]["perplexity"] == pytest.approx(rows[id_]["scores"]["perplexity"], rel=1e-5)


def test_a_tokenizers_pieces(reference, documents, make_corpus, run_stage, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    stage = Perplexity(reference=(reference,), order=4, tokenizer=tmp_path / "tokenizer")
    rows = run_stage(stage, make_corpus(documents))
    good = [rows[f"good{n}"]["scores"]["perplexity"] for n in range(30)]
    bad = [rows[f"bad{n}"]["scores"]["perplexity"] for n in range(70)]
    assert max(good) < min(bad)
    assert np.isfinite(bad).all()


def test_a_text_that_the_tokenizer_gives_up_on_has_no_score(
    reference, documents, make_corpus, run_stage, tokenizer, tmp_path, monkeypatch
):
    def encode(self: Tokenizer, text: str) -> list[int]:
        if "zzz" in text:
            raise GaveUpError("a text cannot be encoded")
        return whole(self, text)

    whole = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    tokenizer.save(tmp_path / "tokenizer")
    stage = Perplexity(reference=(reference,), order=4, tokenizer=tmp_path / "tokenizer")
    rows = run_stage(stage, make_corpus([*documents[:4], Document("hard", "one zzz", "t")]))
    assert rows["hard"]["scores"] == {} and rows["hard"]["metadata"]["perplexity"] == "tail"
    assert all("perplexity" in rows[document.id]["scores"] for document in documents[:4])


def test_dialogues_are_read_by_their_messages(reference, make_corpus, run_stage):
    messages = (Message("user", "the river"), Message("assistant", "runs past the old mill"))
    documents = [Document("a", "", "t", messages=messages), Document("b", "the river\n\nruns past the old mill", "t")]
    rows = run_stage(Perplexity(reference=(reference,)), make_corpus(documents))
    assert rows["a"]["scores"] == rows["b"]["scores"]


def test_settings_must_fit():
    for data, message in (
        ({}, "either reference"),
        ({"reference": ["a"], "model": "b"}, "either reference"),
        ({"reference": ["a"], "head": 0.7, "middle": 0.5}, "cannot be more than 1"),
        ({"reference": ["a"], "keep": []}, "at least one"),
    ):
        with pytest.raises(UserError, match=message):
            Perplexity.parse(data, "stage")
