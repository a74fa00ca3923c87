import json
import random

import fasttext
import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Document
from leyden.data.label import Classifier
from leyden.data.label.fast_text import FastTextSettings, _check_saved, train

GOOD = "because therefore explains the reason water boils at lower pressure when heated slowly in a closed vessel"
BAD = "buy cheap now offer free click here deal sale win prize bonus casino limited best price order today"
SMALL = FastTextSettings(buckets=1 << 12, dim=16)


def texts(words, count, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choice(words) for _ in range(40)) for _ in range(count)]


def write(path, found):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    return path


@pytest.fixture
def examples(tmp_path):
    return write(tmp_path / "good.jsonl", texts(GOOD.split(), 100, 0)), write(
        tmp_path / "bad.jsonl", texts(BAD.split(), 100, 1)
    )


@pytest.fixture
def documents():
    good = [Document(f"good{n}", text, "t") for n, text in enumerate(texts(GOOD.split(), 20, 2))]
    return good + [Document(f"bad{n}", text, "t") for n, text in enumerate(texts(BAD.split(), 80, 3))]


def test_planted_junk_is_dropped(examples, documents, make_corpus, run_stage):
    stage = Classifier(positives=examples[:1], negatives=examples[1:], min_score=0.5, classifier=SMALL, score="quality")
    corpus = make_corpus(documents)
    rows = run_stage(stage, corpus)
    assert {id_ for id_, row in rows.items() if row["reason"] is None} == {f"good{n}" for n in range(20)}
    assert {row["reason"] for row in rows.values()} == {None, "classifier: low quality"}
    assert rows["bad1"]["detail"] == f"quality {rows['bad1']['scores']['quality']:.4g}; at least 0.5 is kept"
    report = stage.report(corpus.work)
    assert report["area_under_curve"] == 1.0 and report["positives"] == report["negatives"] == 100
    assert report["held_out"] == 20 and report["on both sides"] == 0
    assert len(stage.plots(corpus.work)) == 1


def test_a_share_is_kept_whatever_the_shards(examples, documents, make_corpus, run_stage):
    stage = Classifier(positives=examples[:1], negatives=examples[1:], keep=0.1, classifier=SMALL)
    one = run_stage(stage, make_corpus(documents, 1, "one"))
    turned = stage.model_copy(
        update={"positives": (write(examples[0].with_name("r.jsonl"), texts(GOOD.split(), 100, 0)[::-1]),)}
    )
    many = run_stage(turned, make_corpus(documents[::-1], 5, "many"))
    assert one == many
    kept = [row["scores"]["classifier"] for row in one.values() if row["reason"] is None]
    everything = sorted(row["scores"]["classifier"] for row in one.values())
    assert len(kept) >= 10 and min(kept) == everything[-10]
    assert len(kept) == np.sum(np.array(everything) >= everything[-10])


def test_without_negatives_the_corpus_is_the_other_side(examples, documents, make_corpus, run_stage):
    stage = Classifier(positives=examples[:1], classifier=SMALL)
    corpus = make_corpus(documents)
    rows = run_stage(stage, corpus)
    scores = {id_: row["scores"]["classifier"] for id_, row in rows.items()}
    assert min(scores[f"good{n}"] for n in range(20)) > max(scores[f"bad{n}"] for n in range(80))
    assert stage.report(corpus.work)["negatives"] == 100
    assert all(row["reason"] is None for row in rows.values())


def test_bad_input_is_told(examples, documents, make_corpus, tmp_path):
    corpus = make_corpus(documents)
    few = write(tmp_path / "few.jsonl", texts(GOOD.split(), 1, 0))
    with pytest.raises(UserError, match="1 positive examples are left"):
        Classifier(positives=(few,), negatives=examples[1:], classifier=SMALL).prepare(corpus)
    with pytest.raises(UserError, match="no document with text"):
        Classifier(positives=(write(tmp_path / "e.jsonl", [" "]),), negatives=examples[1:]).prepare(corpus)
    with pytest.raises(UserError, match="does not exist"):
        Classifier(positives=(tmp_path / "no.jsonl",)).prepare(corpus)
    with pytest.raises(UserError, match="not both"):
        Classifier.parse({"positives": ["a"], "min_score": 0.1, "keep": 0.2}, "stage")


def test_a_model_that_a_full_disk_cut_off_is_seen(tmp_path):
    train(tmp_path / "m.bin", ["good words", "bad words"] * 3, ["a", "b"] * 3, FastTextSettings(buckets=8, dim=2))
    model, content = fasttext.load_model(str(tmp_path / "m.bin")), (tmp_path / "m.bin").read_bytes()
    _check_saved(model, tmp_path / "m.bin")
    for length in (0, 10, len(content) // 2, len(content) - 4, len(content) - 1):
        (tmp_path / "m.bin").write_bytes(content[:length])
        with pytest.raises(OSError, match="No space left"):
            _check_saved(model, tmp_path / "m.bin")
