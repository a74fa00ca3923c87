import json
import random
import re

import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Document, Message
from leyden.data.label import ModelSettings, Quality
from leyden.data.label.agreement import area_under_curve, on_categories, on_scale
from leyden.data.label.fast_text import FastTextSettings, classify, train
from leyden.data.label.judge import CATEGORIES, Label, excerpt, judge_request, parse_label
from leyden.data.label.labels import Labelled
from leyden.data.label.sampling import sample_corpus

SUBJECTS = {
    "natural science": "the enzyme lowers the energy of activation because its site binds the molecule in transition",
    "computing": "the compiler keeps each variable in a register so that the loop reads memory only once a block",
    "arts and entertainment": "the second movement of the quartet returns to the theme of the viola in a minor key",
}
SMALL = FastTextSettings(buckets=1 << 12, dim=16)
JUNK = "click here home login subscribe share tweet cookies accept next previous page menu copyright reserved buy now"


def planted(count: int) -> list[Document]:
    """Prose about three subjects, and the text of templates, half and half; all different."""
    rng = random.Random(0)
    documents = []
    for number in range(count):
        words = (JUNK if number % 2 else list(SUBJECTS.values())[number // 2 % 3]).split()
        text = " ".join(rng.choice(words) for _ in range(60))
        documents.append(Document(f"d{number}", text, "test", metadata={"n": number}))
    return documents


def judged(request) -> str:
    """What a judge would say, in one of the forms that judges use."""
    text = re.search(r"========\n(.*)\n========", request.messages[-1].content, re.DOTALL).group(1)
    is_junk = sum(word in JUNK for word in text.split()) > 30
    category = "advertising" if is_junk else max(SUBJECTS, key=lambda s: sum(w in SUBJECTS[s] for w in text.split()))
    score = (len(text) % 2) if is_junk else 4 + len(text) % 2
    body = {"knowledge": score, "helpfulness": 0 if is_junk else 4, "category": category.title()}
    return f"<think>{{hm}}</think>```json\n{json.dumps(body)}\n```" if len(text) % 3 else json.dumps(body)


@pytest.fixture
def stage(model_directory):
    return Quality(
        model=ModelSettings(path=model_directory), sample=200, asked_twice=0.3, characters=1000, classifier=SMALL
    )


def test_planted_quality_is_separated_and_agreement_is_as_worked_out_by_hand(stage, fake, make_corpus, run_stage):
    documents = planted(400)
    corpus = make_corpus(documents, model=fake(judged))
    rows = run_stage(stage, corpus)
    good = [rows[f"d{n}"]["scores"] for n in range(0, 400, 2)]
    junk = [rows[f"d{n}"]["scores"] for n in range(1, 400, 2)]
    for name in ("knowledge", "helpfulness"):
        assert min(s[name] for s in good) > max(s[name] for s in junk) + 1
    right = [rows[f"d{n}"]["metadata"]["category"] == list(SUBJECTS)[n // 2 % 3] for n in range(0, 400, 2)]
    assert np.mean(right) > 0.95
    assert rows["d7"]["metadata"] == {"n": 7, "category": "advertising"}
    assert all(0 < row["scores"]["category_confidence"] <= 1.0001 for row in rows.values())
    assert all(row["reason"] is None for row in rows.values())

    report = stage.report(corpus.work)
    lines = (corpus.work / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [Labelled.of_json(line) for line in lines]
    assert report["judge"]["labelled"] == len(labels) == 200
    held = [one for one in labels if one.part == "held out"]
    assert len(held) == 40
    judge = np.array([one.label.knowledge for one in held])
    ours = np.array([rows[one.id]["scores"]["knowledge"] for one in held])
    found = report["classifier"]["knowledge"]
    assert found["pearson"] == pytest.approx(np.corrcoef(judge, ours)[0, 1], abs=1e-6)
    assert found["mean_absolute_error"] == pytest.approx(np.abs(judge - ours).mean(), abs=1e-6)
    same = [one.label.category == rows[one.id]["metadata"]["category"] for one in held]
    assert report["classifier"]["category"]["accuracy"] == pytest.approx(np.mean(same))
    again = report["judge"]["asked again"]
    assert 30 < again["documents"] < 90
    assert again["knowledge"]["equal"] == again["category"]["equal"] == 1.0
    assert [plot.title for plot in stage.plots(corpus.work)] == ["Calibration: knowledge", "Calibration: helpfulness"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_shards_order_and_workers_change_nothing(stage, fake, make_corpus, run_stage, workers):
    documents = planted(300)
    one = make_corpus(documents, 1, "one", fake(judged))
    many = make_corpus(documents[::-1], 5, "many", fake(judged), workers=workers)
    first, second = run_stage(stage, one), run_stage(stage, many)
    assert {k: (v["scores"], v["metadata"]) for k, v in first.items()} == {
        k: (v["scores"], v["metadata"]) for k, v in second.items()
    }
    for name in ("labels.jsonl", "knowledge.bin", "report.json"):
        assert (one.work / name).read_bytes() == (many.work / name).read_bytes()


def test_a_second_build_asks_the_judge_nothing(stage, fake, make_corpus, tmp_path):
    shared = stage.model_copy(update={"answers": tmp_path / "answers"})
    documents = planted(250)
    model = fake(judged)
    shared.prepare(make_corpus(documents, 1, "one", model))
    asked = len(model.asked)
    assert len({r.key("fake") for r in model.asked}) == asked
    shared.prepare(make_corpus(documents, 3, "two", model))
    assert len(model.asked) == asked


def test_malformed_answers_are_asked_again_then_counted_then_too_many(fake, make_corpus, stage):
    def once(request):
        return "Sure! I think it is great." if request.seed == 0 else judged(request)

    corpus = make_corpus(planted(250), 1, "once", fake(once))
    stage.prepare(corpus)
    assert stage.report(corpus.work)["judge"]["malformed"] == {}

    def sometimes(request):
        return '{"knowledge": 9}' if "theme" in request.messages[-1].content else judged(request)

    corpus = make_corpus(planted(250), 1, "sometimes", fake(sometimes))
    stage.prepare(corpus)
    malformed = stage.report(corpus.work)["judge"]["malformed"]
    assert list(malformed) == ["knowledge is not from 0 to 5"]
    shown = [text for text in sample_corpus(corpus, 200, "judge")[1] if "theme" in text]
    assert malformed["knowledge is not from 0 to 5"] == len(shown) > 15

    corpus = make_corpus(planted(250), 1, "never", fake(lambda request: "no"))
    with pytest.raises(UserError, match=r"labelled 0 of 200 documents \(200 no JSON object with scores\)"):
        stage.prepare(corpus)


def test_the_judge_over_http_is_the_same(stage, fake, make_corpus, run_stage, serve):
    from leyden.data.label import ModelRequest

    def respond(number, data):
        if number % 7 == 3:
            return 429, {"retry-after": "0"}, ""
        messages = tuple(Message(**message) for message in data["messages"])
        text = judged(ModelRequest(messages, data["max_tokens"]))
        return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    documents = planted(120)
    local = make_corpus(documents, 1, "local", fake(judged))
    endpoint = ModelSettings(url=serve(respond).url, name="judge", backoff_seconds=0.0, retries=20)
    there = stage.model_copy(update={"model": endpoint})
    remote = make_corpus(documents, 1, "remote")
    assert {k: v["scores"] for k, v in run_stage(stage, local).items()} == {
        k: v["scores"] for k, v in run_stage(there, remote).items()
    }


def test_the_sample_is_by_content(make_corpus):
    documents = [*planted(300), Document("a copy", planted(1)[0].text, "test")]
    small = sample_corpus(make_corpus(documents, 4, "small"), 20, "x")
    large = sample_corpus(make_corpus(documents[::-1], 1, "large"), 50, "x")
    assert large[0][:20] == small[0] and large[1][:20] == small[1]
    everything = sample_corpus(make_corpus(documents, 2, "all"), 1000, "x")[1]
    assert len(everything) == len(set(everything)) == 300
    assert sample_corpus(make_corpus(documents, 4, "other"), 20, "y")[0] != small[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"knowledge": 2, "helpfulness": 3.5, "category": "news"}', Label(2, 3.5, "news")),
        ('I say {"Knowledge": "4/5", "HELPFULNESS": " 0 ", "category": " NEWS "}.', Label(4, 0, "news")),
        ('{"knowledge": 1, "helpfulness": 1, "category": "news"} no: {"knowledge": 2, "helpfulness": 2, "category": '
         '"other"}', Label(2, 2, "other")),
        ("", "no JSON object with scores"),
        ("{" * 5000, "no JSON object with scores"),
        ('{"knowledge": 2', "no JSON object with scores"),
        ('{"x": {"knowledge": 2}}', "no JSON object with scores"),
        ('{"knowledge": 2, "category": "news"}', "no helpfulness"),
        ('{"knowledge": true, "helpfulness": 1, "category": "news"}', "knowledge is no number"),
        ('{"knowledge": NaN, "helpfulness": 1, "category": "news"}', "knowledge is not from 0 to 5"),
        ('{"knowledge": -1, "helpfulness": 1, "category": "news"}', "knowledge is not from 0 to 5"),
        ('{"knowledge": 1, "helpfulness": 1, "category": ["news"]}', "unknown category"),
        ('{"knowledge": 1, "helpfulness": 1}', "unknown category"),
    ],
)  # fmt: skip
def test_answers_are_parsed_with_patience(answer, expected):
    assert parse_label(answer, CATEGORIES) == expected


def test_the_question_holds_the_document_and_its_two_forms_the_same():
    first, second = (judge_request("TEXT", ("one", "two"), 100, 50, seed).messages[-1].content for seed in (0, 1))
    assert "TEXT" in first and "one; two" in first and "two; one" in second
    assert sorted(first.replace("one; two", "")) == sorted(second.replace("two; one", ""))
    text = "".join(chr(0x4E00 + i) for i in range(10_000))
    shown = excerpt(text, 1000)
    assert len(shown) <= 1000 + 2 * len("\n[...]\n")
    assert shown.startswith(text[:500]) and shown.endswith(text[-250:]) and excerpt("short", 1000) == "short"


def test_agreement_by_hand():
    found = on_scale(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0]))
    assert found["pearson"] == pytest.approx(0.8) and found["spearman"] == pytest.approx(0.8)
    assert found["mean_absolute_error"] == 0.5 and found["mean_absolute_error_of_median"] == 1.0
    assert found["calibration"][0] == {"documents": 1, "scored": 1.0, "judged": 1.0}
    assert on_scale(np.ones(3), np.arange(3.0))["pearson"] is None
    found = on_categories(["a", "a", "b", "b"], ["a", "b", "b", "b"])
    assert found["accuracy"] == 0.75 and found["accuracy_of_commonest"] == 0.5
    assert found["kappa"] == pytest.approx((0.75 - 0.5) / 0.5)
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"b": 2}}
    assert area_under_curve(np.array([3.0, 1.0, 1.0]), np.array([1.0, 0.0])) == (2 + 1.5 + 1.5) / 6
    assert area_under_curve(np.empty(0), np.ones(1)) is None


def test_a_classifier_does_not_depend_on_what_memory_held(tmp_path):
    texts = [document.text for document in planted(60)]
    labels = [str(number % 2) for number in range(60)]
    models = set()
    for fill in (np.nan, 0.0, 7e3):
        held = [np.full(16 * (4096 + 100), fill, np.float32) for _ in range(4)]
        del held  # so that what fastText allocates is not fresh
        train(tmp_path / "m.bin", texts, labels, SMALL)
        models.add((tmp_path / "m.bin").read_bytes())
    assert len(models) == 1


def test_no_text_can_name_a_label(tmp_path):
    texts = ["\x01high good\x00 words here", "__label__high\nbad words there", "", "\x01high"] * 5
    train(tmp_path / "m.bin", texts, ["high", "low", "low", "low"] * 5, SMALL)
    labels, probabilities = classify(tmp_path / "m.bin", [*texts[:4], "new"], SMALL)
    assert labels == ["high", "low"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert classify(tmp_path / "m.bin", [], SMALL)[1].shape == (0, 2)


def test_categories_must_differ(model_directory):
    with pytest.raises(UserError, match="at least two categories"):
        Quality.parse({"model": {"path": str(model_directory)}, "categories": ["a", "A"]}, "stage")
