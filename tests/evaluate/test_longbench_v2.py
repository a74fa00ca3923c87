"""LongBench v2: rows, prompts, the cut in the middle, the two questions with reasoning, and how answers are read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subjects import Never, Oracle, make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.rows import read_rows
from leyden.evaluate.tasks.longbench_v2 import LongBenchV2, chosen, without_middle


def make_row(number: int, **changes: object) -> dict[str, object]:
    return {
        "_id": f"row-{number}",
        "domain": "Made up",
        "sub_domain": "Towers",
        "difficulty": ("easy", "hard")[number % 2],
        "length": ("short", "medium", "long")[number % 3],
        "question": f"Who keeps tower {number}?",
        "choice_A": "Nobody {really}",
        "choice_B": "The jar",
        "choice_C": "A bird",
        "choice_D": "The keeper",
        "answer": "ABCD"[number % 4],
        "context": f"Tower {number} {{stands}} alone. " * (10 + 60 * number),
    } | changes


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"), positions=3000)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([make_row(number) for number in range(6)]))
    return path


def says(question):
    return f"**{question.expected[0]}**) of course"


def test_the_right_choice_scores_1_and_parts_are_told_apart(subject, file, tmp_path):
    options = Options(file=file)
    (line,) = evaluate(Oracle(says), subject, ["longbench_v2"], options, tmp_path / "out")
    assert (line["value"], line["n"], line["without_choice"]) == (1, 6, 0)
    assert {cell["part"]: cell["n"] for cell in line["cells"]} == {
        "easy": 3,
        "hard": 3,
        "short": 2,
        "medium": 2,
        "long": 2,
    }
    rows = read_rows(tmp_path / "out" / "longbench_v2.jsonl")
    assert [row["choice"] for row in rows] == list("ABCDAB")
    assert [row["truncated"] for row in rows] == [row["whole_tokens"] > 2700 for row in rows]
    assert 0 < line["truncated"] == sum(row["truncated"] for row in rows) < 6
    (line,) = evaluate(Never(), subject, ["longbench_v2"], options)
    assert (line["value"], line["without_choice"]) == (0, 6)
    (line,) = evaluate(Oracle(lambda question: "B)"), subject, ["longbench_v2"], options)
    assert line["value"] == pytest.approx(2 / 6, abs=1e-6)
    (line,) = evaluate(Oracle(says), subject, ["longbench_v2"], Options(file=file, limit=2))
    assert {cell["part"]: cell["n"] for cell in line["cells"]} == {"easy": 1, "hard": 1, "medium": 2}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("think", [False, True])
def test_prompts_fit_and_keep_both_ends(subject, file, chat, think):
    for item in LongBenchV2(Options(file=file, chat=chat, think=think), subject).items():
        question = item.build()
        prompt = question.prompt
        ids = subject.tokenizer.encode(prompt[0]["content"]) if chat else prompt
        assert len(ids) + question.max_tokens <= 3000
        assert question.max_tokens == (1024 if think else 128)
        text = subject.tokenizer.decode(ids[0 if chat else 1 :])
        number = item.id.removeprefix("row-")
        assert text.startswith("Here is a text. Read it, and answer the question")
        assert f"<text>\nTower {number} {{stands}}" in text
        assert f"Question: Who keeps tower {number}?\nWhich of these answers is correct?\n" in text
        assert "correct?\n(A) Nobody {really}\n(B) The jar\n" in text
        if think:
            assert text.endswith("reason step by step:")
        else:
            assert text.endswith('(LETTER)".' if chat else "The correct answer is (")


def test_reasoning_is_asked_first_and_stands_in_the_second_question(subject, file, tmp_path):
    class Thinker(Oracle):
        def __init__(self):
            super().__init__(lambda question: "B thus A" if question.max_tokens == 1024 else says(question))

    source = Thinker()
    options = Options(file=file, think=True, limit=3)
    (line,) = evaluate(source, subject, ["longbench_v2"], options, tmp_path / "out")
    assert (line["value"], len(source.asked)) == (1, 6)
    first, second = source.asked[0], source.asked[3]
    text = subject.tokenizer.decode(second.prompt[1:])
    assert "Tower 0" not in text and "left out here" in text
    assert "step by step: B thus A\n\nBy this reasoning" in text
    row = read_rows(tmp_path / "out" / "longbench_v2.jsonl")[0]
    assert row["first_answer"] == "B thus A"
    assert row["prompt_tokens"] == len(first.prompt) + len(second.prompt)
    with pytest.raises(UserError, match="other settings"):
        list(evaluate(source, subject, ["longbench_v2"], Options(file=file), tmp_path / "out"))


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 30))
def test_the_middle_is_cut_as_the_authors_cut_it(ids, count):
    theirs = ids[: count // 2] + ids[-count // 2 :] if len(ids) > count else ids
    assert without_middle(ids, count) == theirs
    assert len(theirs) == min(len(ids), count)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is (C).", "C"),
        ("The correct answer is **(C)**", "C"),
        ("The correct answer is D", "D"),
        ("The correct answer is A. No: The correct answer is (B)", "B"),
        ("The correct answer is (E)", None),
        ("the correct answer is (A)", None),
        ("(A)", None),
        ("", None),
    ],
)
def test_how_an_answer_is_read(text, letter):
    assert chosen(text) == letter


def test_broken_rows_are_named(subject, tmp_path):
    rows = [make_row(0), make_row(1, answer="AB"), make_row(2, context=7), {}, make_row(4, difficulty="mild")]
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as error:
        LongBenchV2(Options(file=path), subject)
    for part in (
        "broken.json, row 2: its field 'answer' is 'AB', and has to be one of A, B, C, D",
        "row 3: its field 'context' is 7, and has to be a text",
        "row 4: its field 'difficulty' is missing",
        "row 5: its field 'difficulty' is 'mild', and has to be one of easy, hard",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps([make_row(1), make_row(1)]), "row 2: its field '_id' is 'row-1', and has to be unlike"),
        ("[1]", "row 1 is no JSON object"),
        ("[", "is no JSON"),
        ("", "has no rows"),
        (json.dumps(make_row(1)) + '\n{"_id": "x", "dom', "is cut short"),
        (json.dumps([{}] * 9), "4 more are broken"),
    ],
)
def test_files_that_cannot_be_used(subject, tmp_path, content, says):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match=says):
        LongBenchV2(Options(file=tmp_path / "data.json"), subject)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "name their file with --file"),
        ({"file": "missing.json"}, "missing.json cannot be read"),
        ({"lengths": (4000,)}, "a length of 4000 tokens was asked for, and a model has 3000 positions"),
        ({"lengths": (300,)}, "the frame of a question and its answer take"),
        ({"lengths": (1000, 2000)}, "--lengths names 2"),
    ],
)
def test_what_cannot_be_asked(subject, file, tmp_path, options, says):
    given = {"file": file} if options and "file" not in options else {}
    if "file" in options:
        options = {"file": tmp_path / options["file"]}
    with pytest.raises(UserError, match=says):
        LongBenchV2(Options(**given, **options), subject)


def test_json_lines_give_the_same_items(subject, file, tmp_path):
    rows = json.loads(file.read_text())
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = [LongBenchV2(Options(file=path), subject).items() for path in (file, tmp_path / "data.jsonl")]
    assert [item.build() for item in both[0]] == [item.build() for item in both[1]]


def test_a_few_long_items_are_asked_at_a_time(subject, file, monkeypatch):
    monkeypatch.setattr("leyden.evaluate.evaluation._TOKENS_AT_ONCE", 4000)
    batches = []

    class Counts(Oracle):
        def answers(self, questions):
            batches.append(len(questions))
            return super().answers(questions)

    list(evaluate(Counts(says), subject, ["longbench_v2"], Options(file=file)))
    assert sum(batches) == 6
    assert max(batches) < 6
