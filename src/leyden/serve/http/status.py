"""``/health``, ``/ready``, ``/metrics`` and ``/v1/models``: the state of the engine, and the model it serves."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from leyden.serve.http.errors import failures, responses
from leyden.serve.http.service import Service


class Status(BaseModel):
    """All is well."""

    status: Literal["ok"] = "ok"


class Health(Status):
    """The engine lives; ``weights_version`` says how often its weights became others."""

    weights_version: int


def status_routes(service: Service) -> APIRouter:
    """The two routes that tell how the server is; they need no key."""
    router = APIRouter()

    @router.get("/health", responses=responses(Health, errors=(403, 503)))
    async def health() -> Health:
        """Whether the engine lives: 503 when it is dead, and the server must be started again."""
        service.require_alive()
        return Health(weights_version=service.weights_version)

    @router.get("/ready", responses=responses(Status, errors=(403, 503)))
    async def ready() -> Status:
        """Whether requests are taken: 503 before the start, and while the server shuts down, too."""
        service.require()
        return Status()

    return router


def metrics_routes(service: Service) -> APIRouter:
    """The route for Prometheus."""
    router = APIRouter()

    @router.get("/metrics", responses=failures((401, 403)), response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Queue, speed, latencies, cache and memory, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


class ModelCard(BaseModel):
    """One name of the model, or an adapter; ``root``, ``parent`` and ``max_model_len`` are vLLM's fields.

    Two are Leyden's: ``notice`` is what whoever chats with the model should know of it, where something is known, and
    ``weights_version`` says how often the weights became others since the server started.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["leyden"] = "leyden"
    root: str
    parent: str | None
    max_model_len: int
    notice: str | None
    weights_version: int


class ModelList(BaseModel):
    """All names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def model_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    model = service.model

    def card(name: str) -> ModelCard:
        return ModelCard(
            id=name,
            created=model.created,
            root=model.root,
            parent=model.names[0] if name in model.adapters else None,
            max_model_len=model.context_tokens,
            notice=model.notice,
            weights_version=service.weights_version,
        )

    @router.get("/v1/models", responses=responses(ModelList, errors=(401, 403)))
    async def models() -> ModelList:
        """The names that requests can ask for."""
        return ModelList(data=[card(name) for name in model.known])

    @router.get("/v1/models/{name:path}", responses=responses(ModelCard, errors=(401, 403, 404)))
    async def one_model(name: str) -> ModelCard:
        """The model by one of its names."""
        return card(model.called(name))

    return router
