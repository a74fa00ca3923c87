"""Pairs of the best and the worst response to a prompt, which stages on preferences read."""

import json

import pytest

from leyden.align.chats import preference_of, read_preferences
from leyden.align.preference.best_and_worst import best_and_worst, shortest_and_longer

ROWS = [("q", "a", 0.5), ("r", "a", 1.0), ("q", "b", 1.0), ("q", "c", 0.25), ("q", "d", None), ("r", "b", 1.0)]
ROWS += [("q", " ", 0.0), ("s", "a", 1.0), ("s", "b", None), ("q", "e", 0.25), ("q", "f", 1.0)]


def outcome_lines(path):
    return path.read_text().splitlines()


def graded():
    return [({"prompt": prompt, "response": response}, reward) for prompt, response, reward in ROWS]


def test_the_first_of_the_best_is_preferred_to_the_first_of_the_worst():
    made = best_and_worst(graded())
    pair = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
        "rewards": [1.0, 0.25],
    }
    assert list(made.pairs) == [pair]
    assert (made.num_prompts, made.num_alone, made.num_close) == (3, 1, 1)
    assert preference_of(pair, "id", "source").chosen == tuple(pair["chosen"])


def test_rewards_that_are_too_close_make_no_pair():
    assert best_and_worst(graded(), least_gap=0.75).pairs and not best_and_worst(graded(), least_gap=0.76).pairs
    same = [({"prompt": "q", "response": "a"}, 0.0), ({"prompt": "q", "response": "a"}, 1.0)]
    assert best_and_worst(same).num_close == 1


def test_a_response_that_was_cut_is_never_the_best():
    rows = [
        ({"prompt": "q", "response": text, "finish": finish}, reward)
        for text, finish, reward in (("cut", "length", 1.0), ("whole", "stop", 0.5), ("wrong", "stop", 0.0))
    ]
    assert best_and_worst(rows).pairs[0]["chosen"][0]["content"] == "whole"
    assert not best_and_worst([rows[0], rows[2]]).pairs
    assert best_and_worst([({**row, "provenance": n}, r) for n, (row, r) in enumerate(rows)]).pairs[0][
        "provenance"
    ] == [1, 2]


@pytest.mark.parametrize(
    ("responses", "pair"),
    [
        ([("1234567890", 1), ("12345", 1), ("123456", 1)], ("12345", "1234567890")),
        ([("12345", 1), ("123456", 1)], None),
        ([("12345", 1), ("123456", 0)], ("12345", "123456")),
        ([("12345", 1), ("1234", 0)], None),
        ([("12345", 0), ("1234", 0)], None),
        ([("12345", 0.5), ("12345678", 0.6)], None),
    ],
)
def test_the_shortest_right_response_is_preferred_to_a_longer_one(responses, pair):
    made = shortest_and_longer([({"prompt": "q", "response": text}, reward) for text, reward in responses])
    found = [(one["chosen"][0]["content"], one["rejected"][0]["content"]) for one in made.pairs]
    assert found == ([pair] if pair else []) and made.num_close == (pair is None)


def test_messages_are_a_prompt_and_a_transcript_is_not_taken_apart():
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    said = "\n\nHuman: x\n\nAssistant: y"
    rows = [({"prompt": asked, "response": said}, 1.0), ({"prompt": asked, "response": "b"}, 0.0)]
    (pair,) = best_and_worst(rows).pairs
    read = preference_of(pair, "id", "source")
    assert read.prompt == tuple(asked) and read.chosen == ({"role": "assistant", "content": said},)


def test_the_command_from_responses_to_pairs(tmp_path, leyden_cli):
    rows = [{"prompt": "1 + 1?", "response": text, "reference": "2"} for text in ("It is 2.", "It is 3.", "")]
    responses, rewards = tmp_path / "responses.jsonl", tmp_path / "rewards.jsonl"
    responses.write_text("\n".join(map(json.dumps, [*rows, {"broken": 1}])))
    rewards.write_text(leyden_cli("reward", responses, "--kind", "math").out)
    outcome = leyden_cli("pairs", responses, rewards)
    assert "1 prompts: 1 pairs" in " ".join(outcome.err.split())
    (tmp_path / "pairs.jsonl").write_text(outcome.out)
    (pair,) = read_preferences([str(tmp_path / "pairs.jsonl")], [])
    assert [pair.chosen[0]["content"], pair.rejected[0]["content"]] == ["It is 2.", "It is 3."]
    graded = [{**row, **json.loads(line)} for row, line in zip(rows, outcome_lines(rewards), strict=False)]
    responses.write_text("\n".join(map(json.dumps, graded)))
    assert leyden_cli("pairs", responses).out == outcome.out, "rows that hold their rewards"
    assert leyden_cli("pairs", responses, "--shorter", "1.5").out == "", "they are of one length"
    assert leyden_cli("pairs", responses, "--shorter", "1.5", "--least-gap", "1").code == 2
    responses.write_text("\n".join(map(json.dumps, [*rows, {"broken": 1}])))
    rewards.write_text('{"reward": 1.0}\n')
    assert "has 4 rows and" in " ".join(leyden_cli("pairs", responses, rewards).err.split())


@pytest.mark.parametrize("line", ["{}", "[]", '{"reward": "good"}', '{"reward": NaN}', "{"])
def test_a_line_without_a_reward_is_named(tmp_path, leyden_cli, line):
    (tmp_path / "responses.jsonl").write_text(json.dumps({"prompt": "q", "response": "a"}))
    (tmp_path / "rewards.jsonl").write_text(line)
    outcome = leyden_cli("pairs", tmp_path / "responses.jsonl", tmp_path / "rewards.jsonl")
    assert outcome.code == 2 and "line 1 holds no reward" in " ".join(outcome.err.split())
