import numpy as np
import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Document, Documents, Message
from leyden.data.label import ModelSettings, Rephrase, Reply
from leyden.data.label.rephrase import copied
from leyden.data.label.rephrase_styles import STYLES
from leyden.data.parquet import DocumentsWriter

TEXT = " ".join(f"word{n}" for n in range(60))


def answer(request):
    question = request.messages[-1].content
    name = next(name for name, style in STYLES.items() if style.task in question)
    number = question.split("number")[1].split()[0] if "number" in question else "?"
    said = f"As {name}, document {number} says in other terms what it has always said before. " * 3
    return f"<think>well</think>\n\n{said}"


def documents(count):
    return [Document(f"d{n}", f"number{n} {TEXT}", "web", url=f"http://x/{n}", metadata={"n": n}) for n in range(count)]


def scored(make_corpus, given, **arguments):
    """A corpus whose documents have the score quality, 0, 1, 2, ..."""
    corpus = make_corpus(given, **arguments)
    path = next(iter(corpus.shards.values()))
    with DocumentsWriter(path) as file:
        file.write(Documents.of(given).score("quality", np.arange(len(given), dtype=float)))
    return corpus


@pytest.fixture
def settings(model_directory):
    return {"model": ModelSettings(path=model_directory)}


def test_documents_are_added_for_each_style(settings, fake, make_corpus, run_stage):
    stage = Rephrase(**settings, styles=("wikipedia", "questions"))
    rows = run_stage(stage, make_corpus(documents(5), model=fake(answer)))
    assert set(rows) == {f"d{n}{style}" for n in range(5) for style in ("", "#wikipedia", "#questions")}
    made = rows["d3#questions"]
    assert made["text"].startswith("As questions, document 3 says") and made["reason"] is None
    assert made["metadata"] == {
        "n": 3,
        "rephrased_from": "d3",
        "rephrased_style": "questions",
        "rephrased_by": "fake",
    }
    assert (made["source"], made["url"], made["scores"]) == ("web", "http://x/3", {})
    assert rows["d3"]["text"] == documents(5)[3].text and all(row["reason"] is None for row in rows.values())


def test_the_result_does_not_depend_on_shards_and_is_asked_once(settings, fake, make_corpus, run_stage, tmp_path):
    stage = Rephrase(**settings, answers=tmp_path / "answers")
    model = fake(answer)
    one = run_stage(stage, make_corpus(documents(12), 1, "one", model))
    many = run_stage(stage, make_corpus(documents(12)[::-1], 4, "many", model))
    assert one == many and len(model.asked) == 12


def test_originals_are_replaced_where_something_was_made(settings, fake, make_corpus, run_stage):
    def sometimes(request):
        return "" if "number1 " in request.messages[-1].content else answer(request)

    rows = run_stage(Rephrase(**settings, mode="replace"), make_corpus(documents(3), model=fake(sometimes)))
    assert {id_: row["reason"] for id_, row in rows.items()} == {
        "d0": "rephrase: replaced",
        "d0#wikipedia": None,
        "d1": None,
        "d1#wikipedia": "rephrase: empty",
        "d2": "rephrase: replaced",
        "d2#wikipedia": None,
    }


def test_documents_are_chosen_by_score_length_and_form(settings, fake, make_corpus, run_stage):
    stage = Rephrase(**settings, score="quality", min_score=2, max_score=5)
    given = documents(8)
    given[3] = Document("short", "number3", "web")
    given[4] = Document("talk", "", "web", messages=(Message("user", TEXT),))
    rows = run_stage(stage, scored(make_corpus, given, model=fake(answer)))
    assert {id_ for id_ in rows if "#" in id_} == {"d2#wikipedia", "d5#wikipedia"}
    without = run_stage(stage, make_corpus(given, 1, "without", model=fake(answer)))
    assert not any("#" in id_ for id_ in without)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "rephrase: empty"),
        ("<think>hm, what to say</think>  ", "rephrase: empty"),
        (Reply("It says much in other terms and then is cut " * 5, "length"), "rephrase: cut off"),
        (Reply("too long", "refused"), "rephrase: no answer"),
        ("I'm sorry, but I cannot help with that request, as it is long and I would rather not do it. " * 2,
         "rephrase: refusal"),
        ("As an AI, I do not rewrite. " * 5, "rephrase: refusal"),
        ("I can’t do that. " * 10, "rephrase: refusal"),
        ("All in short: words in a row, of which there are sixty.", "rephrase: too short"),
        (f"number0 {TEXT}", "rephrase: copy"),
        (f"Here it is. number0 {TEXT} That was it.", "rephrase: copy"),
        ("I can tell what it says: a row of words is counted from nought to sixty less one, without end. " * 2, None),
    ],
)  # fmt: skip
def test_answers_of_no_use_are_dropped_with_a_reason(settings, fake, make_corpus, run_stage, said, reason):
    rows = run_stage(Rephrase(**settings), make_corpus(documents(1), model=fake(lambda request: said)))
    assert rows["d0#wikipedia"]["reason"] == reason and rows["d0"]["reason"] is None
    assert (rows["d0#wikipedia"]["detail"] is None) == (reason is None)


def test_a_killed_run_goes_on(settings, fake, make_corpus, run_stage):
    calls = []

    def dies(request):
        calls.append(request)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return answer(request)

    stage = Rephrase(**settings)
    corpus = make_corpus(documents(10), 5, model=fake(dies))
    with pytest.raises(KeyboardInterrupt):
        stage.prepare(corpus)
    rows = run_stage(stage, corpus)
    assert len(calls) == 11
    assert rows == run_stage(stage, make_corpus(documents(10), 1, "whole", model=fake(answer)))


def test_copied_share_by_hand():
    assert copied("a b c d e f g h i j", "a b c d e f g h x") == 1 / 2
    assert copied("a b c", "A  b") == 1.0 and copied("a b c", "c b") == 0.0 and copied("a", "") == 0.0


def test_settings_must_fit(settings):
    data = {"model": {"path": "."}}
    for more, message in (
        ({"styles": ["wiki"]}, "did you mean 'wikipedia'"),
        ({"styles": []}, "at least one style"),
        ({"styles": ["list", "list"]}, "each once"),
        ({"min_score": 1}, "need score"),
    ):
        with pytest.raises(UserError, match=message):
            Rephrase.parse({**data, **more}, "stage")
