"""The report's figures: by hand, and the same from counted words as from encoded text."""

import json

import numpy as np
import pytest

from leyden.tokenizer import Tokenizer
from leyden.tokenizer.report import write_report
from leyden.tokenizer.survey import TokenSurvey
from leyden.tokenizer.words import WordCounts, WordGroup

WEB, BOOKS, GERMAN = WordGroup("en", "web"), WordGroup("en", "books"), WordGroup("de", "web")
TEXTS = [
    ("The dog doesn't mind.\n  <image> it's 12345\n", WEB),
    ("The quick brown fox", BOOKS),
    ("Zürich und Köln, 東京", GERMAN),
    ("", GERMAN),
]


@pytest.fixture
def survey(tokenizer) -> TokenSurvey:
    survey = TokenSurvey(tokenizer)
    for text, group in TEXTS:
        survey.add([text], group)
    return survey


def test_efficiency_is_that_of_the_ids(tokenizer, survey):
    web = [text for text, group in TEXTS if group == WEB]
    tokens = sum(len(tokenizer.encode(text)) for text in web)
    assert survey.by_domain()["books"].num_tokens == len(tokenizer.encode(TEXTS[1][0]))
    english = survey.by_language()["en"]
    assert english.num_tokens == tokens + survey.by_domain()["books"].num_tokens
    assert (english.sizes.num_documents, english.sizes.num_bytes, english.sizes.num_spaced) == (2, 43 + 19, 7 + 4)
    assert english.bytes_per_token == 62 / english.num_tokens
    assert english.tokens_per_word == english.num_tokens / 11
    assert survey.total.sizes.num_documents == 4
    assert list(survey.by_language()) == ["en", "de"]


def test_words_that_were_counted_give_the_same(tokenizer, survey):
    counts = WordCounts()
    for text, group in TEXTS:
        counts.add(text, group)
    other = TokenSurvey.of_words(tokenizer, counts)
    assert other.sizes == survey.sizes
    np.testing.assert_array_equal(other.total_uses, survey.total_uses)
    assert other.by_language() == survey.by_language()
    assert other.by_domain() == survey.by_domain()


def test_surveys_add_up(tokenizer, survey):
    parts = [TokenSurvey(tokenizer), TokenSurvey(tokenizer)]
    for index, (text, group) in enumerate(TEXTS):
        parts[index % 2].add([text], group)
    parts[0].update(parts[1].sizes, parts[1].uses)
    assert parts[0].by_language() == survey.by_language()
    np.testing.assert_array_equal(parts[0].total_uses, survey.total_uses)


def test_unused_tokens_are_those_that_no_text_used_and_could_have(tokenizer, survey):
    used = {index for text, _ in TEXTS for index in tokenizer.encode(text)}
    assert survey.unused().tolist() == [index for index in range(395) if index not in used]


def test_the_report_is_written(tokenizer, survey, tmp_path):
    facts = write_report(tmp_path, survey)
    assert json.loads((tmp_path / "report.json").read_text()) == facts
    assert facts["vocab_size"] == 400
    assert facts["num_unused"] == len(survey.unused())
    sizes = [row["bytes"] for row in facts["longest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(len(tokenizer.token_bytes(index)) for index in range(395))
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 2
    assert f"{facts['total']['bytes_per_token']:.3f}" in page
    assert "Training" not in page


def test_the_report_of_a_training_has_weights_and_counts(tmp_path):
    counts = WordCounts()
    counts.add("the dog and the cat and the dog " * 20, WordGroup("en", "a"))
    counts.add("der Hund und die Katze <&> " * 3, WordGroup("de", "b"))
    tokenizer, training = Tokenizer.from_words(counts, vocab_size=275, targets={"de": 3.0})
    facts = write_report(tmp_path, TokenSurvey.of_words(tokenizer, counts), training, counts)["training"]
    assert facts["commonest_pair"] == training.merges.counts.max()
    assert facts["counter_bits"] == 64
    assert facts["bytes"] == 32 * 20 + 27 * 3
    assert len(facts["rounds"]) == len(training.rounds)
    assert facts["rounds"][-1]["weights"]["de"] > 1
    page = (tmp_path / "index.html").read_text()
    assert "Weights" in page
    assert "<&>" not in page


def test_an_empty_survey_is_no_error(tokenizer, tmp_path):
    facts = write_report(tmp_path, TokenSurvey(tokenizer))
    assert facts["num_unused"] == 395
    assert facts["total"]["bytes_per_token"] == 0
