"""IFEval's instructions: an answer that follows each kind, and one that does not."""

import json

import pytest

from leyden.core.errors import UserError
from leyden.evaluate.harness.instructions import CHECKS, follows, ifeval_results, loose_forms, sentences, share_of_all

ENGLISH = "The keeper of the tower watches over the harbour every night"
CASES = {
    "keywords:existence": ({"keywords": ["jar", "c++"]}, "A Jar of C++.", "A jar."),
    "keywords:frequency": ({"keyword": "ab", "relation": "at least", "frequency": 2}, "ab, AB", "ab"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "catalogue", "the Cat sat"),
    "keywords:letter_frequency": ({"letter": "Z", "let_relation": "less than", "let_frequency": 2}, "zoo", "zizz"),
    "language:response_language": ({"language": "de"}, "Der Turm steht seit vielen Jahren am Hafen.", ENGLISH),
    "length_constraints:number_sentences": ({"relation": "at least", "num_sentences": 2}, "One. Two!", "One only."),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo", "one\n***\n\n***\ntwo"),
    "length_constraints:number_words": ({"relation": "less than", "num_words": 3}, "two words", "three words here"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "First.\n\nNow.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] at [place]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP. S. more", "Bye."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n- two", "* one"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nx\nSECTION 2\ny",
        "SECTION 1",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<The jar>>\n...", "<< >>"),
    "combination:two_responses": ({}, "one ****** two", "one ****** one"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say it."}, "say it. It.", "It."),
    "startend:end_checker": ({"end_phrase": "The end."}, "So be it. the end.", "So be it."),
    "change_case:capital_word_frequency": (
        {"capital_relation": "at least", "capital_frequency": 2},
        "THE END of it",
        "THE end",
    ),
    "change_case:english_capital": ({}, ENGLISH.upper(), ENGLISH),
    "change_case:english_lowercase": ({}, ENGLISH.lower(), ENGLISH),
    "punctuation:no_comma": ({}, "a b", "a, b"),
    "startend:quotation": ({}, '"quoted"', '"open'),
}


def test_every_kind_has_a_case():
    assert set(CASES) == set(CHECKS) and len(CHECKS) == 25


@pytest.mark.parametrize("kind", CASES)
def test_what_follows_and_what_does_not(kind):
    given, good, bad = CASES[kind]
    assert follows(good, {"id": kind, **given})
    assert not follows(bad, {"id": kind, **given})
    assert not follows("  \n", {"id": kind, **given})


def test_strict_and_loose():
    instructions = [{"id": "punctuation:no_comma"}, {"id": "startend:quotation"}]
    doc = {"instructions": json.dumps(instructions)}
    found = ifeval_results(doc, ['Sure, here it is:\n"quoted"'])
    assert found["prompt_strict"] == 0.0 and found["prompt_loose"] == 1.0
    assert found["instruction_strict"] == [False, False] and found["instruction_loose"] == [True, True]
    assert share_of_all([[True, False], [True]]) == pytest.approx(2 / 3)
    assert len(loose_forms("a\n*b*\nc")) == 8


def test_sentences():
    assert sentences('He said "no." Then he left! Why?\n\n- a line\n') == [
        'He said "no."',
        "Then he left!",
        "Why?",
        "- a line",
    ]


def test_instructions_that_are_none():
    with pytest.raises(UserError, match="no instruction 'a:b'"):
        follows("x", {"id": "a:b"})
    with pytest.raises(UserError, match="not of the expected form"):
        follows("x", {"id": "keywords:existence", "words": []})
