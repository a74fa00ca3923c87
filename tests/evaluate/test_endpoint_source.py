"""An OpenAI-compatible endpoint as the source: what it is sent, and what becomes of slow, failing and odd answers."""

import re
import time

import numpy as np
import pytest
from subjects import endpoint, make_subject

from leyden.core.errors import UserError
from leyden.evaluate import Options, evaluate
from leyden.evaluate.sources import EndpointSettings, EndpointSource
from leyden.evaluate.task import Question

OPTIONS = Options(lengths=(600,), depths=3)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"), positions=None)


def source_of(url, subject, **changes):
    settings = {"timeout_seconds": 5.0, "retries": 2, "backoff_seconds": 0.0, **changes}
    return EndpointSource(EndpointSettings(url, **settings), subject.tokenizer)


def knows(path, body):
    """Reads the number out of the prompt, as a perfect model would."""
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    city = re.findall(r"What is the special magic (\w+) number", text)[0]
    number = re.findall(rf"The special magic {city} number is: (\d+)", text)[0]
    usage = {"prompt_tokens": 500, "prompt_tokens_details": {"cached_tokens": 400}}
    choice = {"message": {"content": f"It is {number}."}} if "messages" in body else {"text": f" {number}"}
    assert path.endswith("/chat/completions" if "messages" in body else "/v1/completions")
    return 200, {"choices": [choice], "usage": usage}


@pytest.mark.parametrize("chat", [False, True])
def test_a_perfect_endpoint(subject, chat):
    with endpoint(knows) as (url, bodies):
        source = source_of(url, subject)
        options = Options(lengths=(600,), depths=3, chat=chat)
        (line,) = evaluate(source, subject, ["niah"], options)
        source.close()
    assert (line["value"], line["n"]) == (1, 3)
    assert line["reading"] == {"prompt_tokens": 1500, "read_tokens": 300, "factor": 5.0}
    assert {body["model"] for body in bodies} == {"the-model"}
    assert {body["temperature"] for body in bodies} == {0}


def test_an_endpoint_that_fails_for_a_while(subject):
    failures = iter([(500, "busy"), (429, "slow down"), (200, "no JSON"), (200, {"choices": []})])

    def answer(path, body):
        return next(failures, None) or knows(path, body)

    with endpoint(answer) as (url, bodies):
        source = source_of(url, subject, retries=4, concurrency=1)
        (line,) = evaluate(source, subject, ["niah"], OPTIONS)
        source.close()
    assert line["value"] == 1
    assert len(bodies) == 7


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((500, "out of order"), "failed 3 times, the last time with HTTP 500 'out of order'"),
        ((200, {"choices": [{"text": 7}]}), "not of the expected form"),
        ((200, "[" * 5000), "not of the expected form"),
        ((401, "who are you"), "HTTP 401 'who are you'; check --endpoint, --model and the key"),
        ((400, "too long"), "refuses a prompt of .* tokens: HTTP 400 'too long'"),
    ],
)
def test_an_endpoint_that_never_answers_well(subject, tmp_path, reply, says):
    with endpoint(lambda path, body: reply) as (url, _):
        source = source_of(url, subject)
        with pytest.raises(UserError, match=says):
            list(evaluate(source, subject, ["niah"], OPTIONS, tmp_path / "out"))
        source.close()
    assert (tmp_path / "out" / "niah.jsonl").read_text() == ""
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_slow_endpoint(subject):
    def answer(path, body):
        time.sleep(0.6)
        return knows(path, body)

    with endpoint(answer) as (url, _):
        source = source_of(url, subject, timeout_seconds=0.1, retries=0)
        with pytest.raises(UserError, match="failed once with ReadTimeout"):
            list(evaluate(source, subject, ["niah"], OPTIONS))
        source.close()


def test_rows_that_came_before_a_failure_are_kept(subject, tmp_path):
    asked = []

    def answer(path, body):
        asked.append(body)
        return knows(path, body) if len(asked) < 3 else (403, "enough")

    with endpoint(answer) as (url, _):
        source = source_of(url, subject, concurrency=1)
        with pytest.raises(UserError, match="enough"):
            list(evaluate(source, subject, ["niah"], OPTIONS, tmp_path))
        source.close()
        assert len((tmp_path / "niah.jsonl").read_text().splitlines()) == 2


def test_likelihoods(subject):
    def answer(path, body):
        assert body["echo"] and body["logprobs"] == 1 and body["max_tokens"] == 1
        count = len(body["prompt"])
        logprobs = [None, *(-float(token) / 100 for token in body["prompt"][1:]), -5.0]
        tops = [None, *({"a": -0.5} for _ in range(count - 1)), {"b": -1.0}]
        choice = {"logprobs": {"token_logprobs": logprobs, "top_logprobs": tops}}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": count}}

    with endpoint(answer) as (url, _):
        source = source_of(url, subject)
        ((_, found),) = source.answers([Question([1, 40, 60])])
        source.close()
    assert found.nats is not None and found.greedy is not None
    np.testing.assert_allclose(found.nats, [0.4, 0.6])
    assert found.greedy.tolist() == [True, False]


def test_what_is_not_there(subject, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        EndpointSource(EndpointSettings("http://127.0.0.1:9/v1", api_key_env="NO_SUCH_KEY"), subject.tokenizer)
    with pytest.raises(UserError, match="cannot be reached"):
        EndpointSource(EndpointSettings("http://127.0.0.1:9/v1"), subject.tokenizer)
