"""RULER: what the thirteen tasks hide, how long prompts are, what is asked, and how answers are scored."""

import json
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import TEXT, Never, Oracle, make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.haystack import Haystack
from leyden.evaluate.tasks.ruler import SUBTASKS, Ruler, matched
from leyden.evaluate.tasks.ruler.draft import Materials, Sample
from leyden.evaluate.tasks.ruler.facts import NUM_TOWNS, Town
from leyden.evaluate.tasks.ruler.needles import NOISE
from leyden.evaluate.tasks.ruler.words import ADJECTIVES, NOUNS
from leyden.tokenizer import Tokenizer

NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.\n")
ESSAY = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    text = (
        " ".join([*ADJECTIVES, *NOUNS]) + " 1. 12. 345. magic number text variables assigned value Document question "
    )
    tokenizer = Tokenizer.train([TEXT, text * 2], vocab_size=2000, allow_smaller=True)
    return make_subject(tmp_path_factory.mktemp("subject"), positions=20_000, tokenizer=tokenizer)


def texts(subject, name, **options):
    """The text and the question of each item."""
    for item in Ruler(Options(subtasks=(name,), **options), subject).items():
        question = item.build()
        if question.is_chat:
            yield item, question, question.prompt[0]["content"]
        else:
            yield item, question, subject.tokenizer.decode(question.prompt[1:])


@pytest.mark.parametrize("name", SUBTASKS)
@settings(max_examples=4)
@given(length=st.integers(3501, 9001), seed=st.integers(0, 10**6), chat=st.booleans())
def test_prompts_fill_their_length_and_no_more(subject, name, length, seed, chat):
    ruler = Ruler(Options(subtasks=(name,), lengths=(length,), seed=seed, chat=chat, samples=2), subject)
    for question in (item.build() for item in ruler.items()):
        text = question.prompt[0]["content"] if chat else subject.tokenizer.decode(question.prompt[1:])
        tokens = subject.tokenizer.encode(text) if chat else question.prompt
        assert question.max_tokens == SUBTASKS[name].answer_tokens
        left = length - len(tokens) - question.max_tokens
        assert left >= 0
        assert chat or left < next_piece(name, length, ruler._materials), (left, length)
        assert all(part in text for part in question.expected)


def next_piece(name, length, materials):
    """The most tokens that one more piece of the context takes."""
    if name in ("niah_single_1", "vt"):
        return len(materials.tokenizer.encode(NOISE))
    if name in ESSAY:
        return 1
    if name == "fwe":  # one word more in all raises the counts of several ranks; a word is six letters and a space
        shares = 6 / math.pi**2 / np.arange(1.0, length // 50) ** 2
        return 7 * int(np.diff(np.floor(np.outer(np.arange(length), shares)), axis=0).sum(1).max())
    if name == "cwe":
        return (1 if length < 4096 else 3) * sum(max(map(len, kept)) for kept in materials.kept.values())
    (stream,) = materials.streams.values()
    headers = [len(header) for kept in materials.kept.values() for header in kept]
    return max(map(len, stream.tokens)) + max(headers, default=0)


@pytest.mark.parametrize("name", [name for name in SUBTASKS if name.startswith("niah")])
def test_needles(subject, name):
    counts = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}
    for _, question, text in texts(subject, name, lengths=(4000,)):
        needles = NEEDLE.findall(text)
        kind = "uuid" if name in ("niah_single_3", "niah_multikey_3") else "number"
        if name in ("niah_multikey_2", "niah_multikey_3"):
            assert len(needles) > 40
        else:
            assert len(needles) == counts.get(name, 1)
        many = name in ("niah_multivalue", "niah_multiquery")
        asked = re.search(
            rf"Which (is|are all) the special magic {kind}s? that the text states for (.*)\? The special", text
        )
        keys = asked[2].replace(", and ", ", ").split(", ")
        assert len(keys) == (4 if name == "niah_multiquery" else 1)
        values = [value for key in keys for found, value in needles if found == key]
        assert sorted(values) == sorted(question.expected)
        assert len(set(values)) == (4 if many else 1)
        assert text.endswith(f"states for {asked[2]} {'are' if many else 'is'}")
        assert text.startswith(("Some" if many else "A") + " special magic " + kind)
        if kind == "number":
            assert all(re.fullmatch(r"\d{7}", value) for value in values)
        else:
            assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value) for value in values)
        if name in ESSAY:
            hay = NEEDLE.sub("", text).replace("\n\n", "\n")
            assert "The jar keeps the lightning.\nNobody knows how long it will stay there.\nAsk the keeper" in hay


def test_needles_stand_everywhere(subject):
    for name in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        places = []
        for _, question, text in texts(subject, name, lengths=(3000,), samples=40):
            places.append(text.index(f"is: {question.expected[0]}") / len(text))
        assert min(places) < 0.2 < 0.8 < max(places)


def test_variable_tracking(subject):
    for _, question, text in texts(subject, "vt", lengths=(3000,)):
        example, own = text.split("\n\nAssignments to variables", 1)
        value = re.search(r"have the value (\d{5}) by the end of the text", own)[1]
        names, givers = zip(*re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)\n", own), strict=True)
        assert names == question.expected
        assert givers == (value, *names[:-1])
        assert len(set(names)) == 5
        assert own.endswith(f"5 variables have the value {value}. They are:")
        solved = re.findall(r"VAR ([A-Z]{3}) = ", example)
        assert example.endswith("They are: " + " ".join(solved))
        assert len(solved) == 5
        assert len(subject.tokenizer.encode(example)) <= 520


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (8000, 30, 3), (19_000, 30, 3)])
def test_common_words(subject, length, often, seldom):
    for _, question, text in texts(subject, "cwe", lengths=(length,), samples=2):
        lists = [re.findall(r"(\d+)\. ([a-z-]+)", part) for part in text.split("most often.\n")[1:]]
        assert [int(number) for number, _ in lists[1]] == list(range(1, len(lists[1]) + 1))
        counts = Counter(word for _, word in lists[1])
        assert {word for word, count in counts.items() if count == often} == set(question.expected)
        assert {count for word, count in counts.items() if word not in question.expected} == {seldom}
        solved = lists[0][-10:]
        assert [int(number) for number, _ in solved] == list(range(1, 11))


def test_a_long_list_is_made_of_pairs_of_words(subject):
    materials = Materials(subject.tokenizer, subject.haystack, 0)
    draft = SUBTASKS["cwe"].draft(materials, Sample(0, 300_000, random.Random(1)))
    context, expected = draft.fill(60_000)
    counts = Counter(re.findall(r"\d+\. ([a-z-]+)", subject.tokenizer.decode(context)))
    assert len(counts) > len(ADJECTIVES) + len(NOUNS)
    assert {word for word, count in counts.items() if count == 30} == set(expected)
    assert len(expected) == 10
    assert all("-" in word for word in counts)
    assert 59_900 < len(context) <= 60_000


def test_frequent_words(subject):
    for _, question, text in texts(subject, "fwe", lengths=(4000,), samples=2):
        coded = text.split("that occur most often. ")[1].split("\nQuestion")[0].split(" ")
        counts = Counter(coded)
        ranked = [word for word, _ in counts.most_common(5)]
        assert ranked[0] == "..."
        assert set(ranked[1:4]) == set(question.expected)
        total = next(n for n in range(len(coded), 4 * len(coded)) if math.floor(n * 6 / math.pi**2) == counts["..."])
        for rank, word in enumerate(ranked, 1):
            assert counts[word] == pytest.approx(total / (rank**2 * math.pi**2 / 6), abs=1.5)
        assert len(counts) <= (4000 - 50) // 50


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_questions_about_a_made_up_world(subject, name):
    for _, question, text in texts(subject, name, lengths=(4000,), samples=8):
        documents = re.findall(r"Document (\d+):\n(.*)\n(.*)\n\n", text)
        assert [int(number) for number, _, _ in documents] == list(range(1, len(documents) + 1))
        (answer,) = question.expected
        holding = [body for _, _, body in documents if answer in body]
        asked = text.rsplit("Question: ", 1)[1]
        assert text.endswith("? Answer:")
        if name == "qa_2":
            town = re.search(r"the founder of (\w+) born", asked)[1]
            (founder,) = (re.search(r"founded by (\w+)", body)[1] for _, title, body in documents if title == town)
            assert [body for body in holding if body.startswith(f"{founder} was a")] == holding
            assert town not in holding[0]
        else:
            town = re.search(r"the town of (\w+)", asked)[1]
            assert any(body.startswith(f"{town} is a town") for body in holding)


def test_the_made_up_world_has_no_name_twice():
    towns = [Town(number) for number in range(0, NUM_TOWNS, 7)]
    names = [name for town in towns for name in (town.name, town.founder, town.birthplace)]
    assert len(set(names)) == len(names) == 3 * len(towns)


def test_no_word_stands_within_another():
    words = [*ADJECTIVES, *NOUNS]
    assert len(set(words)) == len(words)
    assert len(NOUNS) % 2 == 0
    assert not [word for word in words if any(word != other and word in other for other in words)]


SQUAD = {
    "data": [
        {
            "title": "Jars",
            "paragraphs": [
                {
                    "context": f"Jar {number} was made in {1700 + number}. " * 3,
                    "qas": [
                        {"question": f"When was jar {number} made?", "answers": [{"text": f"{1700 + number}"}] * 2},
                        {"question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
                for number in range(4)
            ],
        },
        {"title": "Kites", "paragraphs": [{"context": f"Kite {n} flies low. " * 6, "qas": []} for n in range(30)]},
    ]
}
HOTPOT = [
    {
        "question": f"Who is older than {number}?",
        "answer": f"Sibling {number}",
        "context": [[f"Title {number} {part}", [f"Sibling {number} is old. ", "So."]] for part in range(3)],
    }
    for number in range(5)
]


@pytest.mark.parametrize(("name", "content"), [("qa_1", SQUAD), ("qa_2", HOTPOT)])
def test_published_questions(subject, tmp_path, name, content):
    file = tmp_path / "data.json"
    file.write_text(json.dumps(content))
    asked = set()
    for length in (1301, 4000):
        for _, question, text in texts(subject, name, lengths=(length,), samples=4, file=file):
            assert len(question.prompt) + 32 <= length
            asked.add(text.rsplit("Question: ", 1)[1])
            documents = re.findall(r"Document (\d+):\n", text)
            assert [int(number) for number in documents] == list(range(1, len(documents) + 1))
            assert len(documents) > 5
            if name == "qa_1":
                assert len(question.expected) == 1
                assert all(f"Jar {number} was" in text for number in range(4))  # what is near comes first
            else:
                number = question.expected[0].removeprefix("Sibling ")
                assert all(f"Title {number} {part}\nSibling {number} is old. So.\n\n" in text for part in range(3))
    assert len(asked) == 4
    other = "qa_2" if name == "qa_1" else "qa_1"
    assert [item.build() for item in Ruler(Options(subtasks=(other,)), subject).items()] == [
        item.build() for item in Ruler(Options(subtasks=(other,), file=file), subject).items()
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("{}", "is neither SQuAD"),
        ('{"data": [3]}', r"data\[0\] is no JSON object"),
        ('{"data": [{"title": "x"}]}', r"data\[0\]: its field 'paragraphs' is missing, and has to be a list"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', "as SQuAD has it .*: 'qas'"),
        ('{"data": []}', "has no question"),
        ('[{"question": "x", "answer": ""}]', "row 1: its field 'answer' is '', and has to be a text"),
        ('[{"question": "x", "answer": "y", "context": [["t"]]}]', "row 1: its field 'context' is"),
    ],
)
def test_files_that_cannot_be_used(subject, tmp_path, content, says):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match=says):
        Ruler(Options(file=tmp_path / "data.json"), subject)


@pytest.mark.parametrize("name", ["niah_single_1", "niah_single_2", "niah_multikey_2", "vt", "qa_1"])
def test_prompts_of_a_group_begin_alike(subject, name):
    items = Ruler(Options(subtasks=(name,), lengths=(8000,), samples=8), subject).items()
    assert len({item.group for item in items}) == 1
    prompts = [item.build().prompt for item in items]
    shared = [
        next(at for at, (one, other) in enumerate(zip(*pair, strict=False)) if one != other)
        for pair in zip(prompts, prompts[1:], strict=False)
    ]
    assert all(later < earlier + 200 for earlier, later in zip(shared, shared[1:], strict=False))
    assert shared[0] > 2000


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others(subject):
    def prompts(**options):
        items = Ruler(Options(lengths=(4000,), **options), subject).items()
        return {item.id: item.build() for item in items}

    once = prompts(seed=3, samples=2)
    assert len(once) == 26
    assert once == prompts(seed=3, samples=2)
    fewer, other = prompts(seed=3, samples=1), prompts(seed=4, samples=2)
    assert {id: once[id] for id in fewer} == fewer
    assert all(once[id].prompt != other[id].prompt for id in once)


def test_who_knows_scores_1_and_who_does_not_0(subject, tmp_path):
    options = Options(lengths=(3000, 4000), samples=1)
    (line,) = evaluate(Oracle(lambda question: " And ".join(question.expected).upper()), subject, ["ruler"], options)
    assert (line["value"], line["n"]) == (1, 26)
    assert [(cell["subtask"], cell["length"]) for cell in line["cells"]] == [
        (name, length) for name in sorted(SUBTASKS) for length in (3000, 4000)
    ]
    (line,) = evaluate(Never(), subject, ["ruler"], options)
    assert line["value"] == 0
    half = Options(lengths=(3000,), samples=1, subtasks=("niah_multivalue", "qa_1"))
    (line,) = evaluate(Oracle(lambda question: question.expected[0]), subject, ["ruler"], half, tmp_path)
    assert [cell["value"] for cell in line["cells"]] == [0.25, 1]
    assert "heat-ruler-0" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("answer", "all_of", "any_of"), [("an Oak\x07elm", 1, 1), ("OAK", 0.5, 1), ("", 0, 0), ("fir", 0, 0)]
)
def test_matching(answer, all_of, any_of):
    assert matched(answer, ("oak", "Elm"), any_is_enough=False) == all_of
    assert matched(answer, ("oak", "Elm"), any_is_enough=True) == any_of


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(lengths=(30_000,)), "a length of 30000 tokens was asked for, and a model has 20000 positions"),
        (
            Options(lengths=(200,)),
            "ruler niah_single_1: a length of 200 .* what is hidden, the question and",
        ),
        (Options(subtasks=("niah_singel_1",)), "did you mean 'niah_single_1'"),
    ],
)
def test_what_cannot_be_asked(subject, options, says):
    with pytest.raises(UserError, match=says):
        list(evaluate(Oracle(), subject, ["ruler"], options))


@pytest.mark.parametrize("name", SUBTASKS)
def test_the_least_length_is_enough(subject, name):
    with pytest.raises(UserError, match="take") as error:
        Ruler(Options(subtasks=(name,), lengths=(64,), samples=1), subject).items()
    least = int(re.search(r"take (\d+);", str(error.value))[1])
    for length in (least + 20, least + 21, least + 27):  # another length draws other words
        for _, question, text in texts(subject, name, lengths=(length,), samples=1):
            assert len(question.prompt) + question.max_tokens <= length
            assert all(part in text for part in question.expected)


def test_haystacks_of_other_texts_give_other_prompts(subject, tmp_path):
    (tmp_path / "b.txt").write_text("Quite another text.\n" * 400)
    hay = Haystack(subject.tokenizer, [tmp_path / "b.txt"])
    assert hay.source != subject.haystack.source
