"""The OpenAPI document, and ``schemathesis`` on the application in this process: no 5xx, responses as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from leyden.serve.http import create_app

Client = Callable[..., httpx.Response]
HEADERS = {"host": "localhost"}
FITS_THE_DOCUMENT_BUT_NOT_THE_MODEL = [positive_data_acceptance]
"""What a schema cannot say: a prompt longer than the context, fields that contradict each other."""


def test_the_document(client: Client) -> None:
    document = client("GET", "/openapi.json").json()
    assert set(document["paths"]) == {
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        "/v1/models/{name}",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
    }
    request = document["components"]["schemas"]["CompletionRequest"]
    assert request["additionalProperties"] is False
    temperature = request["properties"]["temperature"]
    assert {"type": "number", "minimum": 0.0, "maximum": 100.0} in temperature["anyOf"]
    assert temperature["description"]
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all("422" not in operation["responses"] for operation in operations)
    assert all(operation["summary"] and operation["description"] for operation in operations)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_document_says_which_routes_need_a_key(client: Client) -> None:
    document = client("GET", "/openapi.json", settings=(("api_keys", ("k",)),)).json()
    needing = {path for path, found in document["paths"].items() if any("security" in each for each in found.values())}
    assert set(document["paths"]) - needing == {"/health", "/ready"}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_whatever_is_asked_is_answered_as_documented(make_service: Callable[..., Any], mode: GenerationMode) -> None:
    app = create_app(make_service())
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)
    num_operations = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        num_operations += 1
        if mode.is_negative and not operation.body:
            continue  # nothing of it can be wrong

        @settings(
            max_examples=6,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=HEADERS, excluded_checks=FITS_THE_DOCUMENT_BUT_NOT_THE_MODEL)

        check()
    assert num_operations == 10
