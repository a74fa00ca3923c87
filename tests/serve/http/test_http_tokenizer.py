"""The tokenizer's routes, with vLLM's JSON, and what lm_eval wants of them; the metrics."""

from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leyden.serve.statistics import Statistics
from leyden.tokenizer import Tokenizer

Client = Callable[..., httpx.Response]


def test_text_to_tokens_and_back(client: Client, tokenizer: Tokenizer) -> None:
    text = "The jar ☂ keeps\n\n the Grüße."
    answer = client("POST", "/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert answer == {
        "count": len(tokenizer.encode(text)),
        "max_model_len": 512,
        "tokens": tokenizer.encode(text),
        "token_strs": None,
    }
    assert client("POST", "/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    begun = client("POST", "/tokenize", json={"model": "jar", "prompt": text, "return_token_strs": True}).json()
    assert begun["tokens"] == [tokenizer.bos_id, *answer["tokens"]]
    assert len(begun["token_strs"]) == begun["count"]


def test_a_chat_to_tokens(client: Client, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = client("POST", "/tokenize", json={"messages": messages}).json()
    assert answer["tokens"] == tokenizer.encode_chat(messages)
    closed = client("POST", "/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()
    assert closed["tokens"] == tokenizer.encode_chat(messages, add_generation_prompt=False)


def test_lm_eval_finds_the_special_tokens(client: Client, tokenizer: Tokenizer) -> None:
    """Its remote tokenizer asks for the spelling, and takes the first id of what that becomes."""
    info = client("GET", "/tokenizer_info").json()
    for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        answer = client("POST", "/tokenize", json={"prompt": info[name], "add_special_tokens": False})
        assert answer.json()["tokens"] == [token]
    assert info["chat_template"] == tokenizer.chat_template
    assert isinstance(info["tokenizer_class"], str)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 3}),
        ("/tokenize", {"prompt": "x", "messages": []}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"prompt": "x", "chat_template": "y"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": [True]}),
        ("/detokenize", {"tokens": "abc"}),
    ],
)
def test_what_is_wrong(client: Client, path: str, body: dict) -> None:
    response = client("POST", path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_metrics(client: Client, loop) -> None:
    own = (("max_connections", 77),)  # an application that no other test has asked anything
    loop.statistics = Statistics(queued=3, running=2, pages_used=5, pages_total=9, decode_tokens=77)
    loop.statistics.cache_lost_tokens.update(no_snapshot=11, evicted=4)
    loop.statistics.finished["stop"] = 6
    client("POST", "/v1/completions", settings=own, json={"prompt": ["a", "b"], "max_tokens": 4, "n": 2})
    client("GET", "/nowhere", settings=own)
    response = client("GET", "/metrics", settings=own)
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["leyden_requests_queued",] == 3
    assert samples["leyden_generation_tokens_total",] == 77
    assert samples["leyden_cache_lost_tokens_total", "no_snapshot"] == 11
    assert samples["leyden_completions_finished_total", "stop"] == 6
    assert samples["leyden_kv_pages",] == 9
    assert samples["leyden_time_to_first_token_seconds_count",] == 2
    assert samples["leyden_inter_token_latency_seconds_count",] == 12
    assert samples["leyden_generation_tokens_per_second",] == 1.6
    assert samples["leyden_responses_total", "404"] == 1
