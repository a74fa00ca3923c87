"""Evaluation items found in documents, against a search in plain Python."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leyden.core.errors import UserError
from leyden.data.dedup import Contamination
from leyden.data.documents import Document, Documents, Message


def text(seed: int, count: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 10**6, count))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    rows = [{"question": text(1, 30), "answer": "yes", "number": 3}, {"question": text(2, 9), "answer": text(3, 50)}]
    (root / "quiz.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pq.write_table(pa.table({"prompt": [text(4, 20), None, text(5, 13)]}), root / "tests.parquet")
    (root / "lines.txt").write_text(f"{text(6, 40)}\n{text(7, 7)}\n", encoding="utf-8")
    return tuple(root / name for name in ("quiz.jsonl", "tests.parquet", "lines.txt"))


def marked(stage: Contamination, documents: list[Document], tmp_path) -> dict[str, tuple]:
    made = stage.apply(Documents.of(documents), "0", tmp_path)
    shares = made.scores("contamination").round(3).tolist()
    return dict(
        zip(made.column("id"), zip(made.column("reason"), made.column("detail"), shares, strict=True), strict=True)
    )


def test_set_item_share_span_and_words_are_named(sets, tmp_path):
    inside = text(1, 30).upper().split()[5:20]
    document = Document("a", f"{text(90, 11)}: {', '.join(inside)}! {text(91, 20)}", "memory")
    [(reason, detail, share)] = marked(Contamination(sets=sets), [document], tmp_path).values()
    assert reason == "contaminated by quiz.jsonl"
    assert share == round(3 / 18, 3)  # 15 words hold 3 of the 18 n-grams of 30 words
    excerpt = " ".join(inside).lower()
    assert detail == f"quiz.jsonl, line 1, question: 17 % of its n-grams, words 11 to 25: '{excerpt}'"


def test_every_item_is_found_whole_or_by_one_n_gram_and_short_ones_are_not(sets, tmp_path):
    items = {1: 30, 2: 9, 3: 50, 4: 20, 5: 13, 6: 40, 7: 7}
    documents = [
        Document(f"{s} whole", f"{text(99, 5)} {text(s, n)} {text(98, 5)}", "memory") for s, n in items.items()
    ]
    documents += [Document(f"{s} part", " ".join(text(s, n).split()[3:16]), "memory") for s, n in items.items()]
    documents += [Document(f"{s} less", " ".join(text(s, n).split()[3:15]), "memory") for s, n in items.items()]
    found = marked(Contamination(sets=sets), documents, tmp_path)
    dropped = {id_ for id_, (reason, _, _) in found.items() if reason}
    assert dropped == {f"{s} whole" for s in range(1, 7)} | {f"{s} part" for s in (1, 3, 4, 6)}
    assert all(found[f"{s} whole"][2] == 1 for s in range(1, 7))


def test_a_share_can_be_asked_for_and_documents_only_marked(sets, tmp_path):
    documents = [
        Document("half", " ".join(text(6, 40).split()[:26]), "memory"),
        Document("none", text(50, 30), "memory"),
    ]
    share = round(14 / 28, 3)
    assert marked(Contamination(sets=sets, overlap=0.5), documents, tmp_path)["half"][0]
    assert marked(Contamination(sets=sets, overlap=0.51), documents, tmp_path)["half"] == (None, None, share)
    reported = marked(Contamination(sets=sets, action="report"), documents, tmp_path)
    assert reported["half"] == (None, None, share)
    assert np.isnan(reported["none"][2])


def test_shares_are_those_of_plain_python(tmp_path):
    generator = np.random.default_rng(0)
    items = [" ".join(generator.choice(list("abc"), generator.integers(1, 12))) for _ in range(12)]
    (tmp_path / "set.txt").write_text("\n".join(items))
    texts = [" ".join(generator.choice(list("abc"), generator.integers(0, 40))) for _ in range(30)]
    stage = Contamination(sets=(tmp_path / "set.txt",), ngram_words=4, min_words=2)
    documents = [Document(f"d{number}", document, "memory") for number, document in enumerate(texts)]
    found = marked(stage, documents, tmp_path)
    for number, document in enumerate(texts):
        shares = [0.0]
        for item in items:
            length = min(4, len(item.split()))
            if length >= 2:
                shares.append(len(grams(item, length) & grams(document, length)) / len(grams(item, length)))
        share = found[f"d{number}"][2]
        assert (0.0 if np.isnan(share) else share) == round(max(shares), 3)


def grams(document: str, length: int) -> set[tuple[str, ...]]:
    words = document.split()
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_dialogues_and_chinese_are_searched(tmp_path):
    question = "北京是中华人民共和国的首都是哪一座城市"
    (tmp_path / "set.jsonl").write_text(json.dumps({"q": question}))
    talk = Document("talk", "", "memory", (Message("user", f"你好，{question}？"), Message("assistant", "北京")))
    found = marked(Contamination(sets=(tmp_path / "set.jsonl",)), [talk, Document("b", "北京", "memory")], tmp_path)
    assert found["talk"][0] == "contaminated by set.jsonl"
    assert found["b"][0] is None


def test_named_fields_alone_are_searched_for(sets, tmp_path):
    documents = [Document("q", text(1, 30), "memory"), Document("a", text(3, 50), "memory")]
    found = marked(Contamination(sets=sets[:1], fields=("answer",)), documents, tmp_path)
    assert [found["q"][0], found["a"][0]] == [None, "contaminated by quiz.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b"{\n", "cannot be read as an evaluation set"),
        ("a.parquet", b"no", "cannot be read as an evaluation set"),
        ("a.txt", b"\xff\n", "cannot be read as an evaluation set"),
        ("a.txt", b"", "has no text"),
        ("missing.txt", None, "cannot be read as an evaluation set"),
    ],
)
def test_bad_sets_are_errors_that_name_them(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        Contamination(sets=(tmp_path / name,)).apply(Documents.of([Document("a", "a", "m")]), "0", tmp_path)


def test_settings_that_contradict_are_refused():
    with pytest.raises(UserError, match="min_words = 9 must not exceed ngram_words = 5"):
        Contamination.parse({"sets": ["a"], "ngram_words": 5, "min_words": 9}, "recipe")


def test_a_text_that_many_items_share_costs_no_more_for_coming_often(tmp_path):
    boiler = "answer the question that follows with one of the letters a b c or d and nothing else at all"
    items = [f"{boiler} {text(1000 + number, 9)}" for number in range(1500)]
    (tmp_path / "set.txt").write_text("\n".join(items))
    stage = Contamination(sets=(tmp_path / "set.txt",), overlap=0.9)
    documents = [Document("often", f"{boiler} " * 4000 + items[7], "memory"), Document("own", text(5, 50), "memory")]
    found = marked(stage, documents, tmp_path)
    assert found["often"][0] == "contaminated by set.txt"
    assert found["often"][1].startswith("set.txt, line 8, text: 100 % of its n-grams, words 0 to ")
    assert found["own"][0] is None
