"""The needle in a haystack: what prompts hold, how long they are, and how answers are scored."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Never, Oracle, make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.tasks.niah import Niah, first_number

SENTENCE = re.compile(r"The special magic ([A-Z][a-z]+) number is: (\d{7})\.")
ASKED = re.compile(r"What is the special magic ([A-Z][a-z]+) number\?")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"))


@settings(max_examples=30)
@given(
    length=st.integers(600, 1500),
    depths=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    apart=st.booleans(),
    samples=st.integers(1, 2),
)
def test_every_prompt_holds_the_needle_it_asks_for_at_its_depth(subject, length, depths, seed, apart, samples):
    options = Options(lengths=(length,), depths=depths, seed=seed, apart=apart, samples=samples)
    items = Niah(options, subject).items()
    assert len(items) == depths * samples == len({item.id for item in items})
    for item in items:
        question = item.build()
        text = subject.tokenizer.decode(question.prompt[1:])
        needles = dict(SENTENCE.findall(text))
        (city,) = ASKED.findall(text)
        assert question.expected == (needles[city],)
        assert len(needles) == (1 if apart else depths)
        assert question.prompt[0] == subject.tokenizer.bos_id
        # The whole length is used, but for the difference between long and short names of cities.
        assert length - 40 <= len(question.prompt) + question.max_tokens <= length
        place = text.index(f"magic {city} number is: ") / len(text)
        assert abs(100 * place - item.facts["depth"]) < 25
        assert text.endswith(f"The special magic {city} number is:")


def test_needles_stand_on_lines_of_their_own_and_the_haystack_is_whole(subject):
    items = Niah(Options(lengths=(700,), depths=3), subject).items()
    text = subject.tokenizer.decode(items[0].build().prompt[1:])
    hay = re.sub(r"\nThe special magic \w+ number is: \d+\.\n", "", text[: text.index("\n\nWhat is the special")])
    tokens = subject.tokenizer.encode(hay)
    assert subject.tokenizer.decode(subject.haystack.tokens(len(tokens))).startswith(hay[:-20])
    for before in re.findall(r"(.)\n\nThe special|(.)\nThe special", text)[1:]:
        assert "".join(before) == "\n" or "".join(before) == "."


@pytest.mark.parametrize("apart", [False, True])
def test_prompts_of_a_group_begin_alike(subject, apart):
    items = Niah(Options(lengths=(800,), depths=4, apart=apart), subject).items()
    questions = [item.build() for item in items]
    assert len({item.group for item in items}) == 1
    for one, other in zip(questions, questions[1:], strict=False):
        size = min(len(one.prompt), len(other.prompt))
        common = next((at for at in range(size) if one.prompt[at] != other.prompt[at]), size)
        before_the_needle = subject.tokenizer.decode(other.prompt[1:]).partition("\nThe special magic")[0]
        assert subject.tokenizer.decode(one.prompt[1:common]).startswith(before_the_needle)
        assert apart or common > 700


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others(subject):
    def prompts(**options):
        return [item.build().prompt for item in Niah(Options(lengths=(700,), **options), subject).items()]

    assert prompts(seed=3) == prompts(seed=3)
    assert prompts(seed=3) != prompts(seed=4)
    assert prompts(seed=3, depths=2, samples=2)[:2] != prompts(seed=3, depths=2, samples=2)[2:]


def test_a_longer_grid_keeps_the_shorter_ones_items(subject):
    short = {item.id: item.build().prompt for item in Niah(Options(lengths=(700,)), subject).items()}
    both = {item.id: item.build().prompt for item in Niah(Options(lengths=(700, 900)), subject).items()}
    assert {id: both[id] for id in short} == short


def test_a_chat_is_asked_in_words(subject):
    (item,) = Niah(Options(lengths=(700,), depths=1, chat=True), subject).items()
    question = item.build()
    assert question.is_chat
    assert question.prompt[0]["role"] == "user"
    assert question.prompt[0]["content"].endswith("number?")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (" 1234567", "1234567"),
        ("\n 1,234,567.", "1234567"),
        ("It is 1234567, not 7654321", "1234567"),
        ("12345678", "12345678"),
        ("none", None),
        ("", None),
    ],
)
def test_the_first_number_of_an_answer_counts(answer, found):
    assert first_number(answer) == found


def test_one_who_knows_scores_1_and_one_who_does_not_0(subject):
    options = Options(lengths=(700, 900), depths=3)
    (line,) = evaluate(Oracle(lambda question: f" It is {question.expected[0]}."), subject, ["niah"], options)
    assert (line["value"], line["n"], line["stderr"]) == (1, 6, 0)
    assert line["interval"][0] == pytest.approx(6 / (6 + 1.96**2), abs=1e-4)  # Wilson's, at the upper end
    assert [(cell["depth"], cell["length"]) for cell in line["cells"]] == [
        (depth, length) for depth in (0, 50, 100) for length in (700, 900)
    ]
    (line,) = evaluate(Never(), subject, ["niah"], options)
    assert line["value"] == 0 == line["interval"][0]
    (line,) = evaluate(Oracle(lambda question: "9" * 7), subject, ["niah"], options)
    assert line["value"] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(lengths=(8192,)), "8192 tokens was asked for, and a model has 4096 positions"),
        (Options(lengths=(64,)), "the needles and the question take"),
        (Options(depths=200), "at most"),
    ],
)
def test_what_cannot_be_asked(subject, options, says):
    with pytest.raises(UserError, match=says):
        list(evaluate(Oracle(), subject, ["niah"], options))


@pytest.mark.parametrize(("positions", "lengths"), [(None, (1024, 2048, 4096)), (2500, (1024, 2048)), (700, (700,))])
def test_the_default_lengths_are_those_that_the_model_has_positions_for(subject, positions, lengths):
    default = (1024, 2048, 4096)
    few = replace(subject, positions=positions)
    assert few.lengths(None, default) == lengths
    assert few.lengths((8192,), default) == (8192,)  # what was asked for is refused or answered, never changed
