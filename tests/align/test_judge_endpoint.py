"""Judges behind an endpoint on the loopback interface: patience, nonsense, the cap on spending, the cache on disk."""

import json
import time

import pytest
from stub_endpoint import serving
from typer.testing import CliRunner

from leyden.cli.app import app
from leyden.core.errors import UserError


@pytest.fixture
def serve(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with serving() as start:
        yield start


def answer(text):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def response_of(data):
    """What a request asks the judge to score, without the rubric."""
    return data["messages"][-1]["content"].partition("======== the response")[2].partition("========")[0]


def judging(scores, slow_once=()):
    """Scores a response by the first of the words that it holds; lets some wait the first time."""
    waited = set()

    def respond(number, data):
        asked = response_of(data)
        for word in slow_once:
            if word in asked and word not in waited:
                waited.add(word)
                time.sleep(1.0)
        found = next((score for word, score in scores.items() if word in asked), "7")
        return answer(found if found == "hm" else f'Well. {{"score": {found}, "reason": "so"}}')

    return respond


def verb(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    responses = ["It is good.", "It is slow to come.", "It is unclear.", "It is harm."]
    path.write_text("".join(json.dumps({"prompt": "How is it?", "response": one}) + "\n" for one in responses))
    return path


def test_time_outs_nonsense_the_cap_and_the_cache(serve, rows, tmp_path):
    server = serve(judging({"unclear": "hm", "harm": "0"}, slow_once=["slow"]))
    constitution = tmp_path / "constitution.txt"
    constitution.write_text("(1) No harm.")
    asked = ["reward", rows, "--kind", "judge", "--rubric", constitution, "--endpoint", server.url]
    asked += ["--model-name", "judge", "--cache", tmp_path / "cache", "--timeout", "0.4", "--concurrency", "1"]
    found = verb(*asked, "--max-requests", "3")
    assert [row["reward"] for row in found] == [0.7, 0.7, None, None]
    assert found[0]["components"] == {"constitution": 0.7}
    assert found[2]["reason"] == "no score in 'hm'" and found[3]["reason"] == "the cap of 3 requests is reached"
    assert len(server.calls) == 4, "one of three is asked twice, for it timed out; nonsense not again, for the cap"
    assert "(1) No harm." in json.dumps(server.calls[0]["messages"])
    found = verb(*asked, "--max-requests", "9")
    assert [row["reward"] for row in found] == [0.7, 0.7, None, 0.0]
    assert len(server.calls) == 6, "the fourth, and nonsense once more; what was answered is on disk"
    assert verb(*asked, "--max-requests", "0") == found and len(server.calls) == 6


def test_a_judge_that_never_answers_ends_the_command_and_keeps_what_there_is(serve, rows, tmp_path):
    def respond(number, data):
        if "harm" in response_of(data):
            time.sleep(0.8)
        return answer('{"score": 10}')

    server = serve(respond)
    asked = ["reward", rows, "--kind", "judge", "--rubric", "harmlessness", "--endpoint", server.url]
    asked += [
        "--model-name",
        "j",
        "--cache",
        tmp_path / "c",
        "--timeout",
        "0.3",
        "--retries",
        "0",
        "--concurrency",
        "1",
    ]
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        verb(*asked)
    assert len((tmp_path / "c" / "answers.jsonl").read_text().splitlines()) == 3


def test_truthfulness_asks_once_about_each_statement(serve, tmp_path):
    server = serve(judging({"cheese": "0", "nobody": "hm"}))
    path = tmp_path / "rows.jsonl"
    said = ["The moon is round. It is made of cheese.", "The moon is round!", "That is what nobody knows."]
    path.write_text("".join(json.dumps({"prompt": "The moon?", "response": one}) + "\n" for one in said))
    asked = ["reward", path, "--kind", "truthfulness", "--endpoint", server.url, "--model-name", "j"]
    found = verb(*asked, "--cache", tmp_path / "cache")
    assert [row["reward"] for row in found] == [pytest.approx(0.35), 0.7, None]
    assert len(server.calls) == 4, "three statements, of which one is asked about twice"
    assert found[0]["components"]["agreement"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_sampling_from_an_endpoint_with_rules_and_a_judge(serve, tmp_path):
    def policy(number, data):
        return answer(f"It is draw {data['seed'] % 7}. My card: 4111 1111 1111 1111" if number % 2 else "It is good.")

    server, judge = serve(policy), serve(judging({"good": "9"}))
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    path.write_text(json.dumps({"prompt": "How is it?"}) + "\n")
    asked = ["sample", path, "--out", out, "--endpoint", server.url, "--model-name", "p", "--samples", "3"]
    asked += ["--temperature", "1.0", "--reward", "rules", "--reward", "judge:0.8", "--least", "0.9"]
    asked += ["--judge-endpoint", judge.url, "--judge-name", "j", "--rubric", "helpfulness", "--concurrency", "1"]
    verb(*asked)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["fate"] for row in samples].count("kept") == 1
    (pair,) = (json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines())
    assert pair["chosen"][0]["content"] == "It is good." and "4111" in pair["rejected"][0]["content"]
    assert pair["rewards"][0] == pytest.approx((1 + 0.9) / 2) and pair["rewards"][1] == 0
    assert pair["provenance"][0]["seed"] != pair["provenance"][1]["seed"]
    calls = len(server.calls), len(judge.calls)
    before = (out / "data.jsonl").read_bytes()
    verb(*asked)
    assert (len(server.calls), len(judge.calls)) == calls and (out / "data.jsonl").read_bytes() == before
