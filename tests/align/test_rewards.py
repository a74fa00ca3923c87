"""Rewards: records, the hierarchy, and what each kind says of responses of every form."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from leyden.align.rewards import Level, Reward, by_hierarchy
from leyden.align.rewards.agreement import agreement
from leyden.align.rewards.instructions import grade_instructions
from leyden.align.rewards.judge import Judge, grade_by_judge, rubric_of, score_in
from leyden.align.rewards.mathematics import MathReward, find_answer
from leyden.align.rewards.rules import grade_rules, read_rules
from leyden.cli.app import app
from leyden.core.errors import UserError
from leyden.data.label.language_model import Reply


@pytest.fixture(scope="module")
def mathematics():
    made = MathReward(seconds=60)
    yield made
    made.close()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(value):
    with pytest.raises(UserError, match=r"'reward' is (nan|inf); a reward and its components are finite numbers"):
        Reward(value)
    with pytest.raises(UserError, match="'correct' is"):
        Reward(1.0, {"correct": value})


LEVELS = (Level("harmless"), Level("correct", 0.5), Level("helpful", 0.0))
shares = st.floats(0, 1)


@settings(max_examples=50)
@given(shares, shares, shares, shares)
def test_a_lower_level_never_outweighs_a_higher_one(correct, worse, helpful, other):
    good = by_hierarchy({"harmless": 1.0, "correct": correct, "helpful": helpful}, LEVELS)
    bad = by_hierarchy({"harmless": worse * 0.99, "correct": 1.0, "helpful": other}, LEVELS)
    assert 0 <= bad.reward < good.reward <= 1
    assert good.components["helpful"] == helpful  # all are kept


def test_the_hierarchy_by_hand():
    def of(harmless, correct, helpful):
        return by_hierarchy({"harmless": harmless, "correct": correct, "helpful": helpful}, LEVELS)

    assert of(1.0, 1.0, 0.5).reward == pytest.approx((2 + 0.5) / 3)
    assert of(1.0, 0.25, 0.5).reward == pytest.approx((1 + 0.25) / 3)
    assert of(1.0, 0.25, 0.5).reason == "correct is 0.25, and 0.5 is asked"
    assert of(0.0, 1.0, 1.0).reward == 0 and of(1.0, 1.0, 9.0).reward == 1
    assert of(1.0, None, 1.0).reward is None and of(0.0, None, 1.0).reward == 0
    with pytest.raises(UserError, match="none is none"):
        by_hierarchy({"correct": 1.0}, [Level("none")])


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("first \\boxed{1}, #### 2, then \\boxed{\\frac{3}{4}} of 9", "\\frac{3}{4}", "box"),
        ("9 eggs\n#### 1,200", "1200", "mark"),
        ("The answer is $x+1$. Really, 7 times.", "x+1", "said"),
        ("from 3 to $1,250.50 in all", "1250.50", "number"),
    ],
)
def test_the_final_answer(text, answer, how):
    found = find_answer(text)
    assert found is not None and (found.text, found.how) == (answer, how)


def test_mathematics(mathematics):
    right = [
        ("#### 1,200", "2 * 600 = <<2*600=1200>>1200\n#### 1200"),
        ("\\boxed{\\frac{\\sqrt{2}}{2}}", "\\boxed{\\frac{1}{\\sqrt{2}}}"),
        ("\\boxed{(x-1)(x+1)}", "x^2 - 1"),
        ("\\boxed{\\{3, 1\\}}", "\\{1,3\\}"),
        ("so it is 0.5", "\\frac12"),
        ("\\boxed{(-\\infty, 2]}", "(-\\infty,2]"),
    ]
    for response, reference in right:
        assert mathematics.grade(response, reference).reward == 1, (response, reference)
    for response, reference in [("\\boxed{x^2+1}", "x^2-1"), ("#### 1201", "1200"), ("\\boxed{(2,1)}", "(1,2)")]:
        assert mathematics.grade(response, reference).reward == 0, (response, reference)
    graded = mathematics.grade("I do not know.", "7")
    assert (graded.reward, graded.reason) == (0, "no answer was found")
    assert mathematics.grade("it is 7", "7").components == {"correct": 1.0, "marked": 0.0}
    with pytest.raises(UserError, match="'reference' is empty"):
        mathematics.grade("7", "  ")


def test_an_answer_that_would_keep_the_algebra_busy():
    made = MathReward(seconds=0.5)
    made.same_by_symbols("x", "x+1")  # imports outside of the limit
    graded = made.grade("\\boxed{9^{9^{9^{9^{9}}}} + x}", "\\boxed{x + 1}")
    made.close()
    assert graded.reward == 0
    assert made.grade(f"\\boxed{{{'x+' * 900}1}}", "7y").reward == 0


def test_agreement(mathematics):
    rewards = agreement(["\\boxed{1/2}", "\\boxed{0.5}", "it is 3", "who knows", "#### 0.50"], mathematics)
    assert [reward.reward for reward in rewards] == [1, 1, 0, 0, 1]
    assert [reward.components["agreement"] for reward in rewards] == pytest.approx([0.6, 0.6, 0.2, 0, 0.6])
    assert [reward.reward for reward in agreement(["1", "2"], mathematics)] == [None, None]


def test_instructions():
    asked = [{"id": "punctuation:no_comma", "x": None}, {"id": "startend:quotation"}]
    graded = grade_instructions('Here:\n"quoted"', asked)
    assert graded.reward == 0.5 and graded.components == {"followed": 0.5, "strict": 0.0, "loose": 1.0}
    assert graded.reason == "not followed: startend:quotation"
    for wrong in ([], ["punctuation:no_comma"], [{}]):
        with pytest.raises(UserError, match="'instructions' has to be"):
            grade_instructions("x", wrong)


def test_rules(tmp_path):
    rules = read_rules()
    assert grade_rules("Call 555-1234 about the 4111 cats in 123-45.", rules).reward == 1
    for text in (
        "-----BEGIN RSA PRIVATE KEY-----",
        "AKIAABCDEFGHIJKLMNOP",
        "my card is 4111 1111 1111 1111.",
        "the number 123-45-6789",
    ):
        assert grade_rules(text, rules).reward == 0, text
    own = tmp_path / "own.toml"
    own.write_text('[[rule]]\nname = "shouting"\npattern = "!!!"\n')
    graded = grade_rules("Stop!!!", read_rules(own))
    assert (graded.reward, graded.components, graded.reason) == (0, {"shouting": 0.0}, "breaks: shouting")
    own.write_text('[[rule]]\nname = "x"\npattern = "("\n')
    with pytest.raises(UserError, match="is no regular expression"):
        read_rules(own)


class Model:
    """Answers by its words, in turn, and counts."""

    identity = "test model"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def complete(self, requests):
        for place, _ in enumerate(requests):
            self.asked += 1
            answer = self.answers.pop(0)
            yield place, answer if isinstance(answer, Reply) else Reply(answer)


def graded_by(model, pairs, cache, most=99):
    return grade_by_judge(pairs, Judge(model, "the rubric", "helpfulness", most), cache)


def test_a_judge_and_its_cache(tmp_path):
    model = Model('{"score": 7, "reason": "good"}', 'I think {"score": 3} no: {"score": "2"}')
    pairs = [("ask", "one"), ("ask", "two")]
    assert [reward.reward for reward in graded_by(model, pairs, tmp_path)] == [0.7, 0.2]
    again = Model()
    assert [reward.reward for reward in graded_by(again, pairs, tmp_path)] == [0.7, 0.2]
    assert again.asked == 0


def test_a_judge_that_answers_nonsense(tmp_path, caplog):
    model = Model(
        "nonsense", '{"score": 11}', Reply("too long", "refused"), "still", '{"score": 1}', Reply("x", "refused")
    )
    rewards = graded_by(model, [("ask", "one"), ("ask", "two"), ("ask", "three")], tmp_path)
    assert [reward.reward for reward in rewards] == [None, 0.1, None]
    assert rewards[0].reason == "no score in 'still'" and rewards[2].reason == "the endpoint refused the request"
    assert "2 of 3 responses have no score" in caplog.text


def test_the_cap_on_spending(tmp_path):
    pairs = [("ask", str(number)) for number in range(4)]
    rewards = graded_by(Model('{"score": 5}', '{"score": 5}'), [*pairs[:2], pairs[0], *pairs[2:]], tmp_path, most=2)
    assert [reward.reward for reward in rewards] == [0.5, 0.5, 0.5, None, None]
    assert rewards[3].reason == "the cap of 2 requests is reached"


@pytest.mark.parametrize(
    "answer", ["", "7", "{}", '{"score": true}', '{"score": NaN}', '{"score": -1}', '{"score": "x"}']
)
def test_answers_without_a_score(answer):
    assert score_in(answer) is None


def test_rubrics(tmp_path):
    assert rubric_of("harmlessness")[0] == "harmlessness"
    (tmp_path / "mine.txt").write_text("Is it short?")
    assert rubric_of(str(tmp_path / "mine.txt")) == ("mine", "Is it short?")
    with pytest.raises(UserError, match="it is none of helpfulness"):
        rubric_of("helpfulnes")


def run(tmp_path, kind, rows, *more):
    """The verb's records and what it said."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["reward", str(file), "--kind", kind, *more])
    if done.exception:
        raise done.exception
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def test_the_verb(tmp_path):
    rows = [{"response": "#### 4", "reference": "4"}, "broken\n", "\n", {"response": 4}, {"response": "5"}]
    records, _ = run(tmp_path, "math", rows)
    assert [record["reward"] for record in records] == [1.0, None, None, None]
    assert records[1]["reason"].startswith("line 2 is no JSON")
    assert records[2]["reason"] == "line 4 is no object with a text 'response'"
    assert records[3]["reason"] == "line 5: it needs a field 'reference', and has: response."
    rows = [{"response": "so 4", "reference": value} for value in (4, 4.0, True, ["4"])]
    records, _ = run(tmp_path, "math", rows)
    assert [record["reward"] for record in records] == [1.0, 1.0, None, None]
    assert records[3]["reason"] == "line 4: 'reference' is of another type than it should be: [\"4\"]."
    rows = [{"prompt": "p", "response": text} for text in "112"] + [{"prompt": "q", "response": "2"}]
    assert [record["reward"] for record in run(tmp_path, "agreement", rows)[0]] == [1, 1, 0, None]
    row = {"response": "a, b", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}
    assert run(tmp_path, "ifeval", [row])[0][0]["reason"] == "not followed: punctuation:no_comma"
    assert run(tmp_path, "rules", [{"response": "fine"}])[0][0]["components"]["private key"] == 1
    with pytest.raises(UserError, match="--kind judge asks a model"):
        run(tmp_path, "judge", [row])


def test_the_verb_on_code(tmp_path):
    from leyden.core.sandbox.probe import try_to_escape
    from leyden.core.sandbox.run import SandboxUnavailableError

    try:
        try_to_escape()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    prompt = 'def f(x):\n    """Doubles."""\n'
    rows = [
        {"prompt": prompt, "response": "    return 2 * x\n", "tests": "assert f(2) == 4", "entry_point": "f"},
        {
            "prompt": "Write f.",
            "response": "```python\ndef f(x): return x\n```",
            "tests": ["assert f(0) == 0", "assert f(1) == 2"],
        },
        {
            "prompt": "Sum.",
            "response": "print(sum(map(int, input().split())))",
            "tests": [{"input": "1 2", "output": "3"}],
        },
        {"response": "x = 1", "tests": [1]},
        {"response": "x = 1", "tests": ["assert ("]},
    ]
    records, _ = run(tmp_path, "code", rows, "--seconds", "60", "--concurrency", "2")
    assert [record["reward"] for record in records] == [1.0, 0.0, 1.0, None, None]
    assert records[1]["components"] == {"correct": 0.0, "passed": 0.5}
    assert "the tests are at fault" in records[4]["reason"] and records[4]["reason"].startswith("line 5: ")
