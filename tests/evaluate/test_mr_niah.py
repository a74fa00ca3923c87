"""MR-NIAH: generated dialogues, published rows, and the published rule of scoring."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Never, Oracle, make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.rows import read_rows
from leyden.evaluate.tasks.mr_niah import MrNiah
from leyden.evaluate.tasks.mr_niah.dialogue import make_pairs
from leyden.evaluate.tasks.mr_niah.scoring import components, language, score

AGAIN = re.compile(r"Please repeat (?:the|your) (first|second) .*")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"), positions=8192)


def messages_of(subject, question):
    """The turns of a question, from a chat or from a text."""
    if question.is_chat:
        return [message["content"] for message in question.prompt]
    text = subject.tokenizer.decode(question.prompt[1:])
    assert text.endswith("\n\nAssistant:")
    turns = re.split(r"(?:^|\n\n)(?:User|Assistant): ", text.removesuffix("\n\nAssistant:"))
    assert turns[0] == ""
    return turns[1:]


@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(4000, 7001),
    depths=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    apart=st.booleans(),
    chat=st.booleans(),
    samples=st.integers(1, 2),
)
def test_every_dialogue_has_both_answers_and_asks_for_one(subject, length, depths, seed, apart, chat, samples):
    options = Options(lengths=(length,), depths=depths, seed=seed, apart=apart, chat=chat, samples=samples)
    items = MrNiah(options, subject).items()
    assert len(items) == depths * samples == len({item.id for item in items})
    for item in items:
        question = item.build()
        ids = subject.tokenizer.encode_chat(list(question.prompt)) if chat else question.prompt
        assert length - 800 <= len(ids) + question.max_tokens <= length
        turns = messages_of(subject, question)
        assert len(turns) % 2 == 1
        (which,) = AGAIN.findall(turns[-1])
        asked = [place for place, turn in enumerate(turns) if all(part in turn for part in question.expected)]
        assert len(asked) == 1 == asked[0] % 2
        same = [place for place in range(0, len(turns) - 1, 2) if turns[place] == turns[asked[0] - 1]]
        assert len(same) == 2
        assert asked[0] - 1 == same[which == "second"]
        assert components(turns[asked[0]]) == question.expected
        other = turns[same[which == "first"] + 1]
        assert not any(part in other for part in question.expected)
        assert sum(part in turn for turn in turns for part in question.expected) == len(question.expected)
        place = sum(map(len, turns[: asked[0]])) / sum(map(len, turns))
        assert abs(100 * place - item.facts["depth"]) < 35


def test_questions_of_a_group_share_all_but_the_last_turn(subject):
    questions = [item.build() for item in MrNiah(Options(lengths=(5001,)), subject).items()]
    first = questions[0].prompt
    for other in questions[1:]:
        common = next(at for at, (one, two) in enumerate(zip(first, other.prompt, strict=False)) if one != two)
        assert common > len(first) - 120


def test_the_same_seed_gives_the_same_dialogues_and_another_gives_others(subject):
    def prompts(**options):
        return [item.build().prompt for item in MrNiah(Options(lengths=(5000,), **options), subject).items()]

    assert prompts(seed=3) == prompts(seed=3)
    assert prompts(seed=3) != prompts(seed=4)
    assert prompts(samples=2)[:3] == prompts() != prompts(samples=2)[3:]


def test_pairs_have_no_line_in_common():
    for seed in range(50):
        for pair in make_pairs(random.Random(seed), 4):
            lines = [*pair.first.lines, *pair.second.lines]
            assert not any(one in other for one in lines for other in lines if one is not other)
            assert score(pair.first.answer, pair.first.lines, "english") == 1
            assert score(pair.second.answer, pair.first.lines, "english") == 0


def test_who_knows_scores_1_and_who_takes_the_other_one_0(subject, tmp_path):
    options = Options(lengths=(4001, 6000))

    def recites(question):
        turns = messages_of(subject, question)
        which, request = AGAIN.findall(turns[-1])[0], None
        for place, turn in enumerate(turns):
            if all(part in turn for part in question.expected):
                request = turns[place - 1]
        places = [place for place in range(0, len(turns) - 1, 2) if turns[place] == request]
        return " " + turns[places[which == ("second" if self_confident else "first")] + 1]

    self_confident = True
    (line,) = evaluate(Oracle(recites), subject, ["mr_niah"], options, tmp_path)
    assert (line["value"], line["n"]) == (1, 6)
    assert [(cell["depth"], cell["length"]) for cell in line["cells"]] == [
        (depth, length) for depth in (25, 50, 75) for length in (4001, 6000)
    ]
    self_confident = False
    for source in (Oracle(recites), Never(), Oracle(lambda question: "Sorry: " + " ".join(question.expected))):
        (line,) = evaluate(source, subject, ["mr_niah"], options)
        assert line["value"] == 0
    (line,) = evaluate(Oracle(lambda question: question.expected[1]), subject, ["mr_niah"], options)
    assert line["value"] == pytest.approx(1 / 3, abs=1e-6)
    run_on = Oracle(lambda question: f"{question.expected[0]}.\n\nUser: x\n\nAssistant: Sorry {question.expected[1]}")
    (line,) = evaluate(run_on, subject, ["mr_niah"], options)
    assert line["value"] == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        ("1. Oak\n2. Birch Tree\n3. Elm", ["Oak", "Birch Tree", "Elm"]),
        ("1. 风筝\n2. 灯笼\n3. 雨伞", ["风筝", "灯笼", "雨伞"]),
        ("Green and still, frogs sleeping, a cup of rain.", ["Green and still", "frogs sleeping", "a cup of rain"]),
        ("Old and slow,\nShell on its back, in no hurry.", ["Old and slow", "Shell on its back", "in no hurry"]),
        # Where every line is a sentence, a line is a part.
        (
            "Snow falls, the yard is white.\nSmoke rises, dogs bark.",
            ["Snow falls, the yard is white", "Smoke rises, dogs bark"],
        ),
        ("雪花飘落，院子白了。\n炊烟升起。", ["雪花飘落，院子白了", "炊烟升起"]),
        ("青山远去，\n白云低垂，流水。", ["青山远去", "白云低垂", "流水"]),
    ],
)
def test_the_parts_of_a_label(label, parts):
    assert components(label) == tuple(parts)
    assert score(label, components(label), language(label)) == 1


@pytest.mark.parametrize(
    ("answer", "tongue", "scored"),
    [
        ("Oak, Birch and Elm", "english", 1),
        ("Oak and elm", "english", 1 / 3),
        ("I'm SORRY. Oak, Birch and Elm", "english", 0),
        ("There is No previous conversation about Oak, Birch, Elm", "english", 0),
        ("抱歉 Oak Birch Elm", "english", 1),
        ("抱歉 Oak Birch Elm", "chinese", 0),
        ("没有之前的对话 Oak", "chinese", 0),
        ("sorry Oak Birch Elm", "chinese", 1),
        ("", "english", 0),
    ],
)
def test_refusals_and_parts_of_an_answer(answer, tongue, scored):
    assert score(answer, ("Oak", "Birch", "Elm"), tongue) == pytest.approx(scored)


def make_row(number: int, length_class: int = 2048, **changes: object) -> dict[str, object]:
    asked, label = "Name three trees", f"1. Oak{number}\n2. Elm\n3. Fir"
    turns = [asked, label, asked, "1. Yew\n2. Ash\n3. Box", "Again?"]
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return {"messages": messages, "label": label, "length_class": length_class} | changes


def write(path, rows, end=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


@pytest.mark.parametrize("chat", [False, True])
def test_published_rows(subject, tmp_path, chat):
    rows = [make_row(0), make_row(1, 10240), make_row(2)]
    file = write(tmp_path / "2048_tokens.jsonl", rows)
    source = Oracle(lambda question: "Elm, Fir")
    (line,) = evaluate(source, subject, ["mr_niah"], Options(file=file, chat=chat), tmp_path / "out")
    assert (line["value"], line["n"], line["missing_rows"]) == (pytest.approx(2 / 3, abs=1e-6), 3, 0)
    assert [(cell["depth"], cell["length"], cell["n"]) for cell in line["cells"]] == [(20, 2048, 2), (20, 10240, 1)]
    if chat:
        assert list(source.asked[0].prompt) == rows[0]["messages"]
    else:
        text = subject.tokenizer.decode(source.asked[0].prompt[1:])
        assert text.startswith("User: Name three trees\n\nAssistant: 1. Oak0\n2. Elm\n3. Fir\n\nUser: Name")
        assert text.endswith("User: Again?\n\nAssistant:")
    assert read_rows(tmp_path / "out" / "mr_niah.jsonl")[0]["id"] == "2048_tokens-1"
    (line,) = evaluate(source, subject, ["mr_niah"], Options(file=file, lengths=(10240,)))
    assert line["n"] == 1


def test_chinese_rows_have_their_own_refusals(subject, tmp_path):
    messages = [
        {"role": "user", "content": "树"},
        {"role": "assistant", "content": "橡树，榆树"},
        {"role": "user", "content": "再说"},
    ]
    file = write(tmp_path / "a.jsonl", [make_row(0, messages=messages, label="橡树，榆树")])
    for answer, value in (("榆树 sorry", 0.5), ("抱歉，榆树", 0)):
        (line,) = evaluate(Oracle(lambda question, answer=answer: answer), subject, ["mr_niah"], Options(file=file))
        assert line["value"] == value


def test_files_that_are_cut_short_are_used_and_counted(subject, tmp_path, capsys):
    write(tmp_path / "20480_tokens.jsonl", [make_row(0), make_row(1)], '{"messages": [{"role": "us')
    write(tmp_path / "2048_tokens.jsonl", [make_row(number) for number in range(3)])
    (line,) = evaluate(Oracle(lambda question: "Elm"), subject, ["mr_niah"], Options(file=tmp_path))
    assert (line["n"], line["missing_rows"]) == (5, 28)
    said = capsys.readouterr().err
    assert "20480_tokens.jsonl is cut short within a row: 2 rows of it are whole" in said
    with pytest.raises(UserError, match="has no whole row"):
        MrNiah(Options(file=write(tmp_path / "torn.jsonl", [], '{"messages"')), subject)


def changed(place: int, **changes: object):
    messages = make_row(0)["messages"]
    messages[place] = {**messages[place], **changes}
    return make_row(0, messages=messages)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (make_row(0, label=3), "line 2: its field 'label' is 3, and has to be a text"),
        (make_row(0, label="Oak"), "'label' is 'Oak', and has to be an answer of the assistant in 'messages'"),
        (make_row(0, length_class="2048"), "'length_class' is '2048', and has to be a whole number"),
        (make_row(0, messages="x"), "'messages' is 'x', and has to be a list"),
        (make_row(0, messages=make_row(0)["messages"][:4]), "a list of an odd number of turns"),
        (changed(2, role="assistant"), r"'messages\[2\].role' is 'assistant', and has to be 'user'"),
        (changed(3, content=None), r"'messages\[3\].content' is missing, and has to be a text"),
        (make_row(0, messages=[7]), r"'messages\[0\]' is 7, and has to be an object"),
        ({"label": "x", "length_class": 1}, "'messages' is missing"),
    ],
)
def test_broken_rows_are_named_by_file_line_and_field(subject, tmp_path, row, says):
    file = write(tmp_path / "rows.jsonl", [make_row(0), row, make_row(1)])
    with pytest.raises(UserError, match=says) as error:
        MrNiah(Options(file=file), subject)
    assert "rows.jsonl, line 2" in str(error.value)


def test_a_line_that_is_no_json_in_the_middle(subject, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(make_row(0)) + "\n{oops\n" + json.dumps(make_row(1)) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl, line 2 is no JSON"):
        MrNiah(Options(file=tmp_path / "rows.jsonl"), subject)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(lengths=(9000,)), "a length of 9000 tokens was asked for, and a model has 8192 positions"),
        (Options(lengths=(700,)), "what is asked for, the question and the answer take"),
        (Options(depths=41), "at most 40 are possible"),
    ],
)
def test_what_cannot_be_asked(subject, options, says):
    with pytest.raises(UserError, match=says):
        list(evaluate(Oracle(), subject, ["mr_niah"], options))


def test_a_published_row_that_is_too_long(subject, tmp_path):
    long = make_row(1, 10240)
    long["messages"][2]["content"] = "Name three trees. " * 2000
    file = write(tmp_path / "rows.jsonl", [make_row(0), long])
    with pytest.raises(UserError, match=r"rows.jsonl, line 2 has \d+ tokens .* name the length classes that fit"):
        MrNiah(Options(file=file), subject).items()
    assert len(MrNiah(Options(file=file, lengths=(2048,)), subject).items()) == 1
    with pytest.raises(UserError, match="has no rows of length class 4096; it has 2048, 10240"):
        MrNiah(Options(file=file, lengths=(4096,)), subject).items()
