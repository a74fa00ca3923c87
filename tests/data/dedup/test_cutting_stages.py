"""Repeated lines, paragraphs and substrings, against dictionaries of all of them."""

import functools
import itertools
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from leyden.data.dedup import Paragraphs, Substrings
from leyden.data.dedup.changes import _cut
from leyden.data.dedup.gathering import identities
from leyden.data.dedup.windows import mix
from leyden.data.documents import Document, Documents, Message

AS_IT_IS = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.cache
def hashed(id_: str, text: str) -> int:
    return int(identities(Documents.of([Document(id_, text, "memory")]))[0])


@pytest.fixture(scope="module")
def pages() -> list[Document]:
    """80 pages of own lines and of lines that pages share, in an order of their own; four are dialogues."""
    generator = np.random.default_rng(2)
    shared = [" ".join(f"s{n}" for n in generator.integers(0, 200, generator.integers(1, 12))) for _ in range(25)]
    documents = []
    for number in range(80):
        own = [" ".join(f"u{n}" for n in generator.integers(0, 10**6, 8)) for _ in range(generator.integers(0, 4))]
        lines = [*own, *generator.choice(shared, generator.integers(0, 5)), ""]
        lines = [
            lines[index].upper() if index % 3 == 0 else lines[index] for index in generator.permutation(len(lines))
        ]
        if number % 20 == 7:
            turns = tuple(Message("user", line) for line in lines)
            documents.append(Document(f"p{number}", "", "memory", turns))
        else:
            documents.append(Document(f"p{number}", ("\n" if number % 2 else "\n\n").join(lines), "memory"))
    return documents


def joined(document: Document) -> str:
    return "\n\n".join(message.content for message in document.messages) if document.messages else document.text


def without(text: str, gone: set[int]) -> str:
    return "".join(letter for place, letter in enumerate(text) if place not in gone)


def split(text: str, border: str) -> list[str]:
    parts = [*re.split(border, text), ""]
    return [piece + end for piece, end in zip(parts[::2], parts[1::2], strict=True)]


@pytest.mark.parametrize("occurrences", [1, 3])
@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_lines_beyond_the_allowed_occurrences_go(unit, occurrences, pages, run):
    stage = Paragraphs(unit=unit, occurrences=occurrences, min_bytes=12, min_left_characters=0)
    pieces: dict[str, list[tuple]] = {}
    for document in pages:
        begin = 0
        for piece in split(joined(document), r"(\n)" if unit == "line" else r"(\n\s*\n)"):
            key, end = " ".join(piece.lower().split()), begin + len(piece)
            if len(key) >= 12:
                order = mix(np.array([hashed(document.id, joined(document))], np.uint64), np.array([begin], np.uint64))[
                    0
                ]
                pieces.setdefault(key, []).append((int(order), document.id, (begin, end)))
            begin = end
    gone: dict[str, set[int]] = {}
    for found in pieces.values():
        for _, id_, span in sorted(found, reverse=True)[occurrences:]:
            gone.setdefault(id_, set()).update(range(*span))
    assert gone
    outcome = run(stage, pages, shards=3)
    for document in pages:
        wanted = without(joined(document), gone.get(document.id, set()))
        if document.messages:
            assert "".join("".join(outcome.messages[document.id]).split()) == "".join(wanted.split())
            assert len(outcome.messages[document.id]) == len(document.messages)
        else:
            assert outcome.texts[document.id] == wanted
    assert outcome.report["changed_documents"] == len(gone)


@pytest.mark.parametrize(
    "stage",
    [
        Paragraphs(min_bytes=10, min_left_characters=30, memory_bytes=1 << 16),
        Substrings(length=4, min_left_characters=30, memory_bytes=1 << 16),
        Substrings(unit="bytes", length=25, min_left_characters=30, memory_bytes=1 << 17),
    ],
    ids=["lines", "words", "bytes"],
)
@AS_IT_IS
@given(seed=strategies.integers(0, 1000), shards=strategies.integers(1, 9))
def test_what_is_cut_is_the_same_however_documents_are_dealt(stage, seed, shards, pages, run):
    one, other = run(stage, pages), run(stage, pages, shards=shards, seed=seed)
    assert one.dropped
    assert (one.dropped, one.texts, one.messages) == (other.dropped, other.texts, other.messages)


def gone_windows(documents: list[Document], unit: str, length: int) -> dict[str, set[int]]:
    """The characters of every document that windows cover which occur elsewhere too, all but one of each."""
    windows: dict[object, list[tuple]] = {}
    for document in documents:
        text = joined(document)
        if unit == "words":
            words = [(match.group(), *match.span()) for match in re.finditer(r"\S+", text)]
            for start in range(len(words) - length + 1):
                window = words[start : start + length]
                key = tuple(word for word, _, _ in window)
                follows = words[start + length : start + length + 1]  # what stands between two windows goes with them
                span = (window[0][1], window[-1][2], follows[0][1] if follows else None)
                windows.setdefault(key, []).append((-hashed(document.id, joined(document)), start, document.id, span))
        else:
            data = text.encode()
            for start in range(len(data) - length + 1):
                span = (start, start + length, None)
                windows.setdefault(data[start : start + length], []).append(
                    (-hashed(document.id, joined(document)), start, document.id, span)
                )
    gone: dict[str, set[int]] = {}
    between: list[tuple] = []
    for found in windows.values():
        for _, _, id_, span in sorted(found, key=lambda entry: entry[:2])[1:]:
            gone.setdefault(id_, set()).update(range(*span[:2]))
            between.append((id_, span[1:]))
    for id_, (end, begin) in between:
        if unit == "words" and begin in gone[id_]:
            gone[id_].update(range(end, begin))
    if unit == "bytes":
        texts = {document.id: joined(document) for document in documents}
        gone = {id_: whole_characters(texts[id_], places) for id_, places in gone.items()}
    return gone


def whole_characters(text: str, gone: set[int]) -> set[int]:
    """The characters all of whose bytes go."""
    ends = list(itertools.accumulate(len(letter.encode()) for letter in text))
    return {i for i, (a, b) in enumerate(zip([0, *ends], ends, strict=False)) if set(range(a, b)) <= gone}


@pytest.mark.parametrize(("unit", "length"), [("words", 4), ("words", 7), ("bytes", 20)])
def test_repeated_substrings_go_and_one_of_each_stays(unit, length, pages, run):
    outcome = run(Substrings(unit=unit, length=length, min_left_characters=0), pages, shards=3)
    gone = gone_windows(pages, unit, length)
    for document in pages:
        wanted = without(joined(document), gone.get(document.id, set()))
        if document.messages:
            assert "".join("".join(outcome.messages[document.id]).split()) == "".join(wanted.split())
        elif wanted or not document.text:
            assert outcome.texts[document.id] == wanted
        else:
            assert outcome.dropped[document.id][0] == "repeated substrings: little left"
    assert any(gone.values())


@pytest.mark.parametrize("unit", ["words", "bytes"])
@AS_IT_IS
@given(texts=strategies.lists(strategies.text("ab é你\n\x00", max_size=30), max_size=6))
def test_any_text_is_cut_as_plain_python_does(unit, texts, run):
    documents = [Document(f"d{number}", text, "memory") for number, text in enumerate(texts)]
    outcome = run(Substrings(unit=unit, length=3, min_left_characters=0), documents)
    gone = gone_windows(documents, unit, 3)
    assert outcome.texts == {d.id: without(d.text, gone.get(d.id, set())) for d in documents}


def test_long_documents_are_hashed_in_pieces(pages, run, monkeypatch):
    whole = run(Substrings(length=4), pages)
    monkeypatch.setattr("leyden.data.dedup.substrings._WINDOWS_AT_ONCE", 5)
    monkeypatch.setattr("leyden.data.dedup.substrings._UNITS_COMPARED_AT_ONCE", 9)
    pieces = run(Substrings(length=4), pages)
    assert (whole.dropped, whole.texts) == (pieces.dropped, pieces.texts)


def test_a_text_that_repeats_itself_keeps_one_period(run):
    period = " ".join(f"w{number}" for number in range(12))
    documents = [Document("a", " ".join([period] * 5), "memory")]
    assert run(Substrings(length=10, min_left_characters=0), documents).texts["a"].rstrip() == period


@pytest.mark.parametrize("stage", [Paragraphs(), Substrings(length=5)], ids=["paragraphs", "substrings"])
def test_equal_documents_empty_ones_and_no_shards(stage, run, make_corpus, finish):
    line = "the same line of many words in every document"
    documents = [Document(f"d{number}", line, "memory") for number in range(40)]
    documents += [Document("empty", "", "memory"), Document("word", "word", "memory")]
    outcome = run(stage, documents, shards=4)
    assert len(outcome.dropped) == 39
    assert {detail.split()[0] for _, detail in outcome.dropped.values()} == {"0"}
    best = max((f"d{number}" for number in range(40)), key=lambda id_: hashed(id_, line))
    if isinstance(stage, Substrings):
        assert best not in outcome.dropped
    assert finish(stage, make_corpus([])).dropped == {}
    assert finish(stage, make_corpus([[], [Document("a", "", "memory")]])).dropped == {}


def test_short_lines_and_unchanged_short_documents_stay(run):
    documents = [Document(f"d{number}", "}\n}\nshort\n", "memory") for number in range(5)]
    outcome = run(Paragraphs(), documents)
    assert outcome.dropped == {}
    assert set(outcome.texts.values()) == {"}\n}\nshort\n"}


def test_lines_that_differ_in_a_sign_or_a_digit_are_not_cut(run):
    lines = [
        "total[i - 1] = left[i] + right[j - 1] * 25",
        "total[i + 1] = left[i] - right[j + 1] * 2.5",
        "The price of apples was 1.50 in the market",
        "The price of apples was 15.0 in the market",
        "The price of apples was 15.0 in the market!",
    ]
    documents = [Document(f"d{number}", f"{line}\nown {number}", "memory") for number, line in enumerate(lines)]
    documents.append(Document("copy", f"  {lines[0].upper()}\t", "memory"))
    outcome = run(Paragraphs(min_left_characters=0), documents)
    assert sum(document.text != outcome.texts[document.id] for document in documents) == 1
    assert outcome.texts["copy"] == "" or outcome.texts["d0"] == "own 0"


def test_a_dialogue_of_very_many_turns_is_cut_in_linear_time():
    parts = ["ab"] * 200_000
    spans = [(4 * turn, 4 * turn + 1) for turn in range(200_000)]
    assert _cut(parts, spans) == ["b"] * 200_000
