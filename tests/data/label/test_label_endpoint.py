import json
import socket
import time

import pytest

from leyden.core.errors import UserError
from leyden.data.documents import Message
from leyden.data.label import ModelRequest, ModelSettings
from leyden.data.label.answers import Answers, ask
from leyden.data.label.language_model import Reply
from leyden.data.label.open_model import open_model


def completion(text, finish="stop"):
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish}]})


def settings(url, **changes):
    return ModelSettings(**{"url": url, "name": "m", "backoff_seconds": 0.01, "retries": 2, **changes})


def requests(count, max_tokens=5):
    return [ModelRequest((Message("user", f"question {i}"),), max_tokens) for i in range(count)]


def echo(number, data):
    return completion(data["messages"][-1]["content"].replace("question", "answer"))


def test_asks_in_parallel_and_gives_every_answer_its_index(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    server = serve(echo)
    model = open_model(settings(server.url, api_key_env="SOME_KEY", concurrency=4), None)
    answers = dict(model.complete(requests(20)))
    assert {i: a.text for i, a in answers.items()} == {i: f"answer {i}" for i in range(20)}
    assert {call["path"] for call in server.calls} == {"/v1/chat/completions"}
    assert all(call["model"] == "m" and call["max_tokens"] == 5 and call["seed"] == 0 for call in server.calls)
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)


@pytest.mark.parametrize(
    "bad",
    [
        (429, {"retry-after": "0"}, "slow down"),
        (500, {}, "oops"),
        (503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, ""),
        (200, {}, "<html>not JSON"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": null}}]}'),
        (200, {}, "[1]"),
    ],
)
def test_failures_that_may_pass_are_tried_again(serve, bad):
    server = serve(lambda number, data: bad if number < 2 else echo(number, data))
    assert list(open_model(settings(server.url), None).complete(requests(1))) == [(0, Reply("answer 0"))]
    assert len(server.calls) == 3


@pytest.mark.parametrize("bad", [(429, {}, "busy"), (502, {}, "gateway"), (200, {}, "{}")])
def test_failures_that_do_not_pass_are_told(serve, bad):
    server = serve(lambda number, data: bad)
    with pytest.raises(UserError, match=r"failed 3 times.*run the same command again"):
        list(open_model(settings(server.url), None).complete(requests(1)))
    assert len(server.calls) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_name_stops_at_once(serve, status):
    server = serve(lambda number, data: (status, {}, "no"))
    with pytest.raises(UserError, match=rf"HTTP {status} 'no'; check model.url, model.name and the key"):
        list(open_model(settings(server.url, concurrency=1), None).complete(requests(3)))
    assert len(server.calls) <= 3


def test_a_request_that_is_refused_does_not_stop_the_others(serve):
    too_long = (400, {}, "context length exceeded")
    server = serve(lambda n, data: too_long if "1" in data["messages"][0]["content"] else echo(n, data))
    answers = dict(open_model(settings(server.url), None).complete(requests(3)))
    assert [answers[i].finish for i in range(3)] == ["stop", "refused", "stop"]
    assert "context length exceeded" in answers[1].text


def test_connection_refused_and_time_out_are_told(serve):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="ConnectError"):
        list(open_model(settings(url), None).complete(requests(1)))

    def slow(number, data):
        time.sleep(0.3)
        return echo(number, data)

    with pytest.raises(UserError, match="ReadTimeout"):
        list(open_model(settings(serve(slow).url, timeout_seconds=0.05, retries=1), None).complete(requests(1)))


def test_cut_off_answers_are_marked(serve):
    server = serve(lambda number, data: completion("half", "length"))
    assert list(open_model(settings(server.url), None).complete(requests(1))) == [(0, Reply("half", "length"))]


def test_a_killed_run_asks_nothing_twice(serve, tmp_path):
    server = serve(lambda number, data: echo(number, data) if number < 4 else (401, {}, "expired"))
    model = open_model(settings(server.url, concurrency=1), None)
    with Answers(tmp_path) as answers, pytest.raises(UserError, match="expired"):
        ask(model, requests(10), answers)
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write(b'{"key": "0123')  # killed in the middle of a line
    asked = len(server.calls)  # one more may have been under way
    server.respond = echo
    with Answers(tmp_path) as answers:
        assert len(answers) == 4
        keys = ask(model, requests(10) + requests(2), answers)
        assert [answers.get(key).text for key in keys] == [f"answer {i}" for i in (*range(10), 0, 1)]
    assert len(server.calls) == asked + 6
    with Answers(tmp_path) as answers:
        ask(model, requests(10), answers)
    assert len(server.calls) == asked + 6
    with Answers(tmp_path) as answers:  # another question is another answer
        ask(model, requests(10, max_tokens=6), answers)
    assert len(server.calls) == asked + 16


def test_refused_requests_are_not_kept_and_all_refused_is_an_error(serve, tmp_path):
    server = serve(lambda number, data: (400, {}, "unknown parameter seed"))
    model = open_model(settings(server.url), None)
    with Answers(tmp_path) as answers:
        ask(model, requests(3), answers)
        assert len(answers) == 0
        with pytest.raises(
            UserError, match="refused all 8 requests, the first with: HTTP 400 'unknown parameter seed'"
        ):
            ask(model, requests(8), answers)


def test_a_damaged_file_of_answers_is_told(tmp_path):
    (tmp_path / "answers.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(UserError, match="damaged at byte 0"):
        Answers(tmp_path)


def test_no_bit_of_kept_answers_changes_unseen(tmp_path):
    keys = [f"{number:064x}" for number in range(2)]
    with Answers(tmp_path) as answers:
        for key in keys:
            answers.put(key, Reply(f"the answer to {key[-1]}"))
    path = tmp_path / "answers.jsonl"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            damaged = Answers(tmp_path)
        except UserError as error:
            assert "damaged at byte" in str(error)
            continue
        for key in keys:
            assert damaged.get(key) in (None, Reply(f"the answer to {key[-1]}"))  # none: it is asked again
    path.write_text(json.dumps({"key": keys[0], "text": "of an older version", "finish": "stop"}) + "\n")
    assert Answers(tmp_path).get(keys[0]) == Reply("of an older version")


def test_settings_say_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"either path .* or url"):
        ModelSettings.parse({}, "stage")
    with pytest.raises(UserError, match="needs name"):
        ModelSettings.parse({"url": "http://x"}, "stage")
    with pytest.raises(UserError, match="url"):
        ModelSettings.parse({"url": "x", "name": "m"}, "stage")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        open_model(settings("http://x", api_key_env="NO_SUCH_KEY"), None)
    with pytest.raises(UserError, match="is no directory"):
        open_model(ModelSettings(path=tmp_path / "no"), None)
    with pytest.raises(UserError, match="leyden data build"):
        open_model(ModelSettings(path=tmp_path), None)
    assert open_model(ModelSettings(path=tmp_path), lambda path: path) == str(tmp_path)
    assert ModelSettings(path=tmp_path).files() == (tmp_path,)
